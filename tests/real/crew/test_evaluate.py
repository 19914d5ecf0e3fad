"""Real rows from data to evaluation: a run evaluated as it goes, and by the command afterwards, with the same numbers."""

import json
import sys
from pathlib import Path

import pytest
from conftest import SMALL, rows, try_out
from crews import prepared_for, train

from rlopt.data.arithmetic import CHARACTERS
from rlopt.run import workers
from rlopt.run.summary import summarize

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")

DATA = Path(__file__).parents[2] / "data" / "gsm8k.jsonl"

SCORE = """
import time
from pathlib import Path

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    for hung in ("first", "second"):
        try:
            (Path(__file__).parent / hung).touch(exist_ok=False)
        except FileExistsError:
            continue
        time.sleep(60)
    return {"score": len(solution_str) / 16, "length": len(solution_str)}
"""


def evaluate(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlopt.evaluate", *overrides]


def known(row: dict[str, str]) -> str:
    """A row as a line, with the characters of its question that the tiny model knows: it has room for 128."""
    return json.dumps({**row, "question": "".join(one for one in row["question"] if one in CHARACTERS.replace(" ", ""))}) + "\n"


def test_what_a_run_measures_on_gsm8k_is_what_the_command_measures_of_its_checkpoint(
    crew: workers.RunWorkers, home: Path, tmp_path: Path
) -> None:
    problems = [known(json.loads(line)) for line in DATA.read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(problems[:32] + problems[60:]))
    (tmp_path / "test.jsonl").write_text("".join(problems[32:]))
    (tmp_path / "own.py").write_text(SCORE)
    run = tmp_path / "run"
    data = ("+data=gsm8k", "data.subset=null", f"data.train={tmp_path}/train.jsonl", f"data.eval={tmp_path}/test.jsonl")
    kind = ("data.template=null", "rollout.max_new_tokens=16", "sync.interval=2", "trainer.total_steps=4")
    reward = (f"reward.fn=[rlopt.rewards:mathematics,{tmp_path}/own.py:compute_score]", "reward.weights=[1.0,0.5]")
    held_out = ("trainer.eval_every=2", "trainer.best=eval/test/greedy", "eval.samples=2", "eval.limit=6")
    prepared = prepared_for(run, "+algo=grpo", *SMALL, *data, *kind, *reward, "reward.timeout_s=3", *held_out)
    said = summarize(prepared)
    assert "questions and answers (question, answer after ####)" in said
    assert "left out 3 row(s) of data.train: also in data.eval" in said  # the fourth is too long
    train(crew, prepared, home / "fresh", keep=True)
    metrics = rows(run / "metrics.jsonl")
    assert [row["step"] for row in metrics if "eval/test/greedy" in row] == [2, 4]
    assert all("reward/part/mathematics" in row and "reward/part/compute_score/length" in row for row in metrics)
    # What hangs costs its own sample, is counted, and stands in the events with its input.
    assert sum(row["reward/timeout_frac"] for row in metrics) == 2 / 16
    faults = [event for event in rows(run / "events.jsonl") if event["event"] == "reward_fault"]
    assert [fault["fault"] for fault in faults] == ["timeout"] * 2
    assert all("took over reward.timeout_s=3.0 on Question(" in fault["why"] for fault in faults)

    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert best["value"] == max(row["eval/test/greedy"] for row in metrics if "eval/test/greedy" in row)
    out = tmp_path / "numbers.json"
    done = try_out(evaluate(f"run={run}", "evaluate.checkpoint=4", f"evaluate.out={out}"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {f"eval/{row['data']}/{row['metric']}": row["value"] for row in json.loads(out.read_text())["metrics"]}
    for name in ("eval/test/avg@2", "eval/test/greedy"):
        assert found.get(name) == metrics[-1].get(name)
    answers = rows(tmp_path / "numbers.answers.jsonl")
    # The first six that fit: the fifth row is too long.
    assert {answer["id"] for answer in answers} == {f"test.jsonl:{number}" for number in (1, 2, 3, 4, 6, 7)}


def test_what_cannot_be_evaluated_is_one_line() -> None:
    done = try_out(evaluate("run=/nowhere"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: /nowhere: holds no complete checkpoint")
    assert done.stderr.count("\n") == 1, done.stderr
