"""Held-out prompts are answered by all engines, and counted."""

import pytest
from builders import group, prompt
from fakes import Engines

from rlopt.core.errors import Interrupted
from rlopt.core.requests import SampleRequest, SamplingSpec
from rlopt.core.samples import Group, Key
from rlopt.evaluation.evaluator import AHEAD, Evaluator, names, sampling_specs


class Asked(Engines):
    """Draws as many as it is asked for; prompts of an odd number are answered right, and `c3` loses an answer."""

    def ask(self, key: Key, request: SampleRequest) -> None:
        assert len(self.under_way) < AHEAD
        self.under_way[key] = request

    def wait(self, deadline_s: float) -> None:
        key = max(self.under_way)  # the last one first
        request = self.under_way.pop(key)
        assert request.sampling
        right = float(int(request.prompt.id[1:]) % 2)
        rewards = (right,) * request.sampling.count
        self.done[key] = group(request.prompt.id, rewards[1:] if request.prompt.id == "c3" and len(rewards) > 1 else rewards)


def evaluator(engines: Engines, **sets: int) -> Evaluator:
    prompts = {name: [prompt(f"{name}{i}") for i in range(count)] for name, count in sets.items()}
    return Evaluator(prompts, sampling_specs(2, 0.7, 0.9, greedy=True), 1.0, engines, 1.0, lambda: None)


def test_every_prompt_of_every_set_is_answered_in_every_manner_and_in_order() -> None:
    engines = Asked()
    found = evaluator(engines, a=300, b=3).answers()
    assert [(answers.name, answers.sampling) for answers in found] == [
        ("a", SamplingSpec(2, 0.7, 0.9)),
        ("a", SamplingSpec(1, 0.0, 1.0)),
        ("b", SamplingSpec(2, 0.7, 0.9)),
        ("b", SamplingSpec(1, 0.0, 1.0)),
    ]
    assert [g.prompt.id for g in found[0].groups] == [f"a{i}" for i in range(300)]
    assert not engines.done


def test_metrics_are_named_by_set_and_number_of_answers() -> None:
    assert evaluator(Asked(), b=4).measure(lambda: None) == {
        "eval/b/avg@2": 0.5,
        "eval/b/pass@2": 0.5,
        "eval/b/greedy": 0.5,
        "eval/b/unscored": 0.0,
    }


def test_a_prompt_with_an_answer_that_has_no_reward_is_counted_and_left_out() -> None:
    metrics = evaluator(Asked(), c=4).measure(lambda: None)
    assert metrics["eval/c/unscored"] == 1.0
    assert metrics["eval/c/avg@2"] == pytest.approx(1 / 3)  # c0, c1, c2
    assert metrics["eval/c/greedy"] == 0.5


def test_groups_of_the_samplers_are_left_where_they_are() -> None:
    engines = Asked()
    engines.done[(3, 0)] = kept = group("s")
    evaluator(engines, a=2).measure(lambda: None)
    assert engines.done == {(3, 0): kept}


def test_where_no_engine_is_left_others_are_brought_back() -> None:
    engines = Asked(numbers=[])
    wait = engines.wait

    def waits(deadline_s: float) -> None:
        if not engines.numbers:
            Engines.wait(engines, deadline_s)
        wait(deadline_s)

    engines.wait = waits  # type: ignore[method-assign]
    plan = Evaluator(
        {"a": [prompt("a1")]}, sampling_specs(1, 1.0, 1.0, False), 1.0, engines, 1.0, lambda: engines.numbers.append(1)
    )
    groups: list[Group] = plan.answers()[0].groups
    assert len(groups) == 1


def test_sets_are_called_by_their_last_name_unless_two_have_it() -> None:
    assert names("arithmetic") == {"arithmetic": "arithmetic"}
    assert names(["openai/gsm8k", "data/test.jsonl"]) == {"gsm8k": "openai/gsm8k", "test": "data/test.jsonl"}
    assert names(["a/test.jsonl", "b/test.jsonl"]) == {"a/test.jsonl": "a/test.jsonl", "b/test.jsonl": "b/test.jsonl"}


def test_more_work_follows_once_all_has_been_asked_for() -> None:
    engines, then = Asked(), list[int]()
    evaluator(engines, a=200, b=100).measure(lambda: then.append(len(engines.done) + len(engines.under_way)))
    assert len(then) == 1
    assert 0 < then[0] <= AHEAD


def test_an_evaluation_of_a_run_that_is_to_end_leaves_nothing_to_be_saved() -> None:
    class Told(Asked):
        """Is told to end after a few answers."""

        def wait(self, deadline_s: float) -> None:
            if len(self.log) == 3:
                raise Interrupted
            self.log.append((0, 0))
            super().wait(deadline_s)

    engines = Told()
    with pytest.raises(Interrupted):
        evaluator(engines, a=10).answers()
    assert not engines.asked
