"""Environments on the real stack: a run that plays episodes and one whose environments fail; calls read by vLLM's parsers."""

import gzip
import itertools
import json
import subprocess
from pathlib import Path

import pytest
from conftest import command, rows, sound

from rlopt.core.errors import RloptError
from rlopt.environments.wire import Call
from rlopt.models.tiny import tokenizer
from rlopt.rollout.tool_calls import calls_of, parser_name

# A line break ends a turn, and the environment begins the next line. Some rows make it fail, in the run that asks for that.
ENVIRONMENT = """
import os
import time

from rlopt.data import arithmetic


class Prompter:
    def __init__(self, fails=0):
        self.fails = fails

    def reset(self, row, seed):
        self.row, self.lines = row, 0
        self.kind = sum(map(ord, row["prompt"])) % 7 if self.fails == 1 else self.fails
        if self.kind == 2:
            raise ValueError("no such row")

    def step(self, action):
        if self.kind == 3:
            time.sleep(60)
        if self.kind == 4:
            os._exit(1)
        self.lines += 1
        if action.endswith("\\n") and self.lines < 3:
            return f"Step {self.lines + 1}: ", False, 0.0
        return None, True, arithmetic.reward("", action, self.row["answer"])
"""
SHORT = ["+algo=grpo", "data.prompts_per_step=4", "algo.group_size=4", "tracking.wandb=disabled"]
SHORT += ["env.fn=prompter:Prompter", 'env.stop=["\\n"]', "env.max_turns=4"]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    (folder / "prompter.py").write_text(ENVIRONMENT)
    line = command(*SHORT, *overrides, f"run.dir={folder / 'run'}")
    return subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=folder)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which weights change while episodes are under way."""
    folder = tmp_path_factory.mktemp("played")
    more = ["sync.mode=async", "sync.interval=1", "sync.max_lag=4", "trainer.total_steps=12", "run.record=true"]
    done = train(folder, *more, "data.eval=arithmetic", "trainer.eval_every=6", "eval.limit=8", "eval.samples=2")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_episodes_are_learned_from_as_they_were_sampled(played: Path) -> None:
    sound(played)
    metrics = rows(played / "metrics.jsonl")
    assert all(row["env/error_frac"] == row["env/timeout_frac"] == 0.0 for row in metrics)
    assert sum(row["env/turns"] for row in metrics) > 1.2 * len(metrics)  # the model writes steps in half of its episodes
    assert abs(metrics[0]["offpolicy/behavior_kl"]) < 1e-5  # engine and learner agree on every token of all turns
    assert abs(metrics[0]["offpolicy/ratio_max"] - 1) < 1e-3
    assert "eval/arithmetic/avg@2" in metrics[-1]


def test_a_record_of_episodes_is_what_the_environment_would_answer(played: Path) -> None:
    text, answered = tokenizer(), 0
    groups = [json.loads(line) for line in gzip.decompress((played / "experience.jsonl.gz").read_bytes()).splitlines()][1:]
    for sample in (sample for group in groups for sample in group["samples"]):
        ids, turns = sample["token_ids"], sample["turns"]
        spoken = [int(any(start <= place < end for start, end, _ in turns)) for place in range(len(ids))]
        assert sample["spoken"] == spoken
        assert all((version == -1) == (not mine) for version, mine in zip(sample["versions"], spoken, strict=True))
        assert all(value == 0.0 for value, mine in zip(sample["logprobs"], spoken, strict=True) if not mine)
        assert sample["spoken"][-1] == 1
        for number, ((_, end, _), (begin, _, _)) in enumerate(itertools.pairwise(turns), 2):
            assert text.decode(ids[:end]).endswith("\n")
            assert text.decode(ids[end:begin]) == f"Step {number}: "
            answered += 1
    assert answered > 20


def test_environments_that_fail_are_counted_and_named_and_the_run_goes_on(tmp_path: Path) -> None:
    more = ["+env.options.fails=1", "trainer.total_steps=4", "sync.interval=2", "env.timeout_s=2.0", "env.on_error=skip"]
    done = train(tmp_path, *more)
    assert done.returncode == 0, done.stderr
    metrics, events = rows(tmp_path / "run" / "metrics.jsonl"), rows(tmp_path / "run" / "events.jsonl")
    faults = [event for event in events if event["event"] == "environment_fault"]
    told = {kind: [event["why"] for event in faults if event["fault"] == kind] for kind in ("timeout", "error")}
    assert any("step took over env.timeout_s=2.0 on prompt" in why for why in told["timeout"])
    assert any("reset raised ValueError: no such row" in why for why in told["error"])
    assert any("died, twice, on prompt" in why for why in told["error"])
    lost = sum(16 * (row["env/timeout_frac"] + row["env/error_frac"]) for row in metrics)
    assert lost == pytest.approx(len(faults))
    assert sum(row["offpolicy/dropped_frac"] * 16 for row in metrics) == pytest.approx(lost)


def test_an_environment_that_raises_ends_the_run_with_its_name_and_row(tmp_path: Path) -> None:
    done = train(tmp_path, "+env.options.fails=2", "trainer.total_steps=4")
    assert done.returncode == 1
    assert "error: env.fn=prompter:Prompter reset raised ValueError: no such row" in done.stderr
    assert "mend it, or env.on_error=skip" in done.stderr
    assert "Traceback" not in done.stderr


def test_calls_are_read_as_each_family_of_models_writes_them() -> None:
    text = tokenizer()
    text.add_tokens(["[TOOL_CALLS]", "<|python_tag|>", "<tool_call>", "</tool_call>"])
    tools = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}]
    wanted = [Call("add", {"a": 1, "b": 2})]
    hermes, mistral, llama = (calls_of(name, text, tools) for name in ("hermes", "mistral", "llama3_json"))
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    assert hermes(f"so\n{call}") == wanted
    assert hermes(f"{call}\n{call}") == wanted * 2
    assert mistral('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]') == wanted
    assert llama('{"name": "add", "parameters": {"a": 1, "b": 2}}') == wanted
    assert [parse("It is 3.") for parse in (hermes, mistral, llama)] == [[], [], []]
    (broken,) = hermes('<tool_call>\n{"name": "add", "arguments": {"a": 1')
    assert broken.error == "what follows <tool_call> is not a call; want JSON with name and arguments"
    (listed,) = hermes('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>')
    assert listed.error == "add: the arguments are not an object"
    assert [parser_name("auto", one) for one in ("..<tool_call>..", "[TOOL_CALLS]", "x<|python_tag|>")] == [
        "hermes",
        "mistral",
        "llama3_json",
    ]
    with pytest.raises(RloptError, match="env.parser=auto: the chat template does not show how tools are called"):
        parser_name("auto", "")
    with pytest.raises(RloptError, match=r"env.parser=nope: vLLM has no such tool parser; one of .*hermes"):
        calls_of("nope", text, tools)
