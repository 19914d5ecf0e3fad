"""The main job on the real stack: versions, lags, metrics, verified weights, and a fork."""

from collections.abc import Callable
from pathlib import Path

import crews
import psutil
import pytest
from conftest import SMALL, on_schedule, rows, sound

from rlopt.run import workers
from rlopt.tracking.metrics import DEFINITIONS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

ALGORITHMS = ("grpo", "rec_oneside_nois", "red_weight")
ON_SYNC = {name for name in DEFINITIONS if name.startswith("sync/")} | {"timing_s/sync", "idle/rollout_frac"}
ELSEWHERE = {name for name in DEFINITIONS if name.startswith(("preference/", "eval/", "data/", "replay/", "env/"))}
ELSEWHERE |= {"actor/pg_clipfrac_lower", "offpolicy/masked_frac", "offpolicy/opsm_frac", "timing_s/eval", "reward/part/NAME"}
ELSEWHERE |= {
    "response_length/p90",
    "response_length/finished_mean",
    "response_length/finished_p90",
    "offpolicy/dropped_groups",
    "perf/learner_peak_gib",
}
"""Of recorded rows, of corrections and regimes that these runs do not ask for, and of GPUs."""
Runs = Callable[[str], Path]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_batches_are_sampled_by_versions_0_20_40_with_lags_0_to_19_and_ratios_that_show_it(run: Runs, algo: str) -> None:
    on_schedule(run(algo))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_step_logs_every_metric_and_no_other(run: Runs, algo: str) -> None:
    for row in rows(run(algo) / "metrics.jsonl"):
        expected = set(DEFINITIONS) - ELSEWHERE - ({"actor/pg_clipfrac"} if algo == "red_weight" else set())
        assert set(row) == (expected if row["step"] in (20, 40) else expected - ON_SYNC)
        assert all(isinstance(value, int | float) for value in row.values())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_weights_arrive_when_it_is_time_and_engine_and_learner_then_agree(run: Runs, algo: str) -> None:
    syncs = [event["version"] for event in rows(run(algo) / "events.jsonl") if event["event"] == "sync"]
    assert syncs == [0, 20, 40]
    sound(run(algo))


def test_a_fork_on_another_schedule_samples_anew_with_the_weights_that_it_takes(
    run: Runs, crew: workers.RunWorkers, tmp_path: Path
) -> None:
    begin = run("grpo") / "checkpoints" / "step_30"  # with batches 31 to 40 on its shelves, spoken by version 20
    keys = ("+algo=grpo", *SMALL, "sync.interval=1", "trainer.total_steps=32", f"run.resume={begin}")
    prepared = crews.prepared_for(tmp_path / "fork", *keys)
    assert prepared.start.left_behind == "sync.interval=1 (there: 20)"
    crews.train(crew, prepared)
    assert [(row["step"], row["version"]) for row in rows(tmp_path / "fork" / "metrics.jsonl")] == [(31, 30), (32, 31)]


def test_an_engines_process_is_forked_from_one_that_has_imported_vllm_and_holds_the_model(crew: workers.RunWorkers) -> None:
    family = psutil.Process().children(recursive=True)
    engines = [process for process in family if process.name() == "VLLM::EngineCore"]
    assert len(engines) == 2
    for engine in engines:
        server = engine.parents()[0]
        assert "multiprocessing.forkserver" in " ".join(server.cmdline())
        assert any("/vllm/" in library.path for library in server.memory_maps())
    assert "VLLM::Worker" not in {process.name() for process in family}  # which would keep a core busy while it waits
