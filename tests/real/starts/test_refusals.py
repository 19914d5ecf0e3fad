"""Bad input to the real command: one line with the way out, a non-zero exit, and nothing left running."""

from pathlib import Path

import pytest
from conftest import SMALL, WHOLE, command, try_out


def refuse(*overrides: str) -> str:
    done = try_out(command(*overrides))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_no_algorithm() -> None:
    assert "append one with +algo=NAME, where NAME is one of a3po, aspo, asymre, " in refuse()


def test_a_misspelt_key() -> None:
    assert "did you mean sync.interval" in refuse("+algo=grpo", "sync.intervall=1")


def test_a_model_folder_that_does_not_exist() -> None:
    assert "model.path=/nowhere: no such folder" in refuse("+algo=grpo", "model.path=/nowhere")


def test_a_hub_name_that_cannot_be_reached() -> None:
    assert "model.path=some/model: no such folder, and the Hub did not give it" in refuse("+algo=grpo", "model.path=some/model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ('{"prompt": "' + "1" * 90 + '", "answer": "1"}', "no prompt is left, 1 are prompts of more than 56 tokens"),
    ],
)
def test_an_empty_file_and_a_prompt_that_is_too_long(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    assert message in refuse("+algo=grpo", f"data.train={file}", f"run.dir={tmp_path / 'run'}")


def test_an_engine_that_does_not_start_is_told_with_vllms_own_reason(tmp_path: Path) -> None:
    line = refuse("+algo=grpo", *SMALL, "rollout.kv_cache_gib=1e-6", "tracking.wandb=disabled", f"run.dir={tmp_path / 'run'}")
    assert "error: vLLM's engine did not start: ValueError: No available memory for the cache blocks" in line


def test_a_run_directory_that_holds_another_run(gone_on: Path) -> None:
    before = (gone_on / "config.yaml").read_text()
    line = refuse("+algo=red_weight", *SMALL, f"run.dir={gone_on}", "trainer.total_steps=60")
    assert f"run.dir={gone_on}: holds another run, algo.name=red_weight (there: grpo)" in line
    assert (gone_on / "config.yaml").read_text() == before


def test_a_run_that_is_finished(gone_on: Path) -> None:
    line = refuse("+algo=grpo", *WHOLE, f"run.dir={gone_on}")
    assert "trainer.total_steps=45:" in line
    assert "has made 45 steps already" in line


def test_a_setting_that_is_handed_over_without_a_plus() -> None:
    key = "learner.deepspeed.steps_per_print"
    assert f"{key}: append it with a plus, +{key}=VALUE" in refuse("+algo=grpo", f"{key}=5")
