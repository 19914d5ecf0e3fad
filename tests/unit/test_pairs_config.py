"""The config of `rlopt.pairs`: training's, with what only training has taken out, and its own section."""

import pytest
from builders import composed
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rlopt.config.commands import PairsJob
from rlopt.config.compose import translate
from rlopt.core.errors import RloptError
from rlopt.pairs import typed


def compose(*overrides: str) -> PairsJob:
    try:
        return typed(composed("pairs", *overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise translate(error, "pairs") from error


def test_the_defaults_sample_as_the_paper_did_and_share_the_rest_with_training() -> None:
    job = compose()
    assert (job.rollout.temperature, job.rollout.top_p, job.pairs.attempts) == (0.8, 0.95, 2)
    assert (job.run.seed, job.model.path, job.data.train, job.reward.fn) == (
        42,
        "tiny_s",
        "arithmetic",
        "rlopt.data.arithmetic:reward",
    )
    assert compose("rollout.top_p=0.5", "model.path=tiny_l").rollout.top_p == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs.out=rows.parquet", "pairs.out=rows.parquet: must end with .jsonl"),
        ("pairs.count=0", "pairs.count=0: must be at least 1 row"),
        ("pairs.count=many", "pairs.count=many: input should be a valid integer"),
        ("pairs.attempts=0", "pairs.attempts=0: must be at least 1 answer per prompt"),
        ("pairs.continuations=0", "pairs.continuations=0: must be at least 1 per wrong answer"),
        ("pairs.chunk=0", "pairs.chunk=0: must be at least 1 prompt"),
        ("pairs.eval_share=1.0", "pairs.eval_share=1.0: must be at least 0 and below 1"),
        ("pairs.cont=3", "pairs.cont: no such key, did you mean pairs.count; see conf/pairs.yaml, or --cfg job"),
        ("+pairs.cont=3", "pairs.cont=3: no such key"),
        ("learner.lr=0.1", "learner.lr: no such key"),
        ("run.dir=here", "run.dir=here: no such key"),
        ("data.prompts_per_step=3", "data.prompts_per_step=3: there are no learner steps here; set pairs.chunk"),
        ("data.eval=rows.jsonl", "data.eval=rows.jsonl: nothing is scored here; pairs.eval_share holds rows out"),
        ("rollout.sleep=true", "rollout.sleep=True: there is no learner here to make room for"),
        ("cluster.gpus_per_learner=1", "cluster.gpus_per_learner=1.0: there is no learner here; leave it out"),
        ("rollout.temperature=0", "rollout.temperature=0: must be above 0"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_with_key_value_and_way_out(override: str, message: str) -> None:
    with pytest.raises(RloptError) as refusal:
        compose(override)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
