"""Batches, their averaging weights, and splits that change nothing."""

import json
from pathlib import Path

import pytest
import torch
from builders import group, prompt, sample

from rlopt.batching import make_batch, pad, split, weights
from rlopt.errors import RloptError
from rlopt.objectives.rec_oneside_nois import RecOneSideNoIS
from rlopt.types import Batch, Group

OBJECTIVE = RecOneSideNoIS(clip_low=0.2, clip_high=0.2)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())


def test_a_batch_holds_prompt_and_response_and_speaks_only_of_the_response() -> None:
    batch = make_batch([Group(prompt(length=3), (sample(2, 1.0), sample(4, 0.0)))], OBJECTIVE, step=8)
    assert batch.token_ids.tolist() == [[5, 6, 7, 20, 21, 0, 0], [5, 6, 7, 20, 21, 22, 23]]
    assert batch.lengths.tolist() == [5, 7]
    assert batch.mask.tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch.behavior[0].tolist() == [0, 0, 0, -0.5, -0.5, 0, 0]
    assert batch.advantages[1].tolist() == [0, 0, 0, -0.5, -0.5, -0.5, -0.5]
    assert batch.lag.tolist() == [7, 7]


def test_a_token_that_the_policy_did_not_speak_is_masked_out() -> None:
    spoken = sample(3)
    spoken.spoken[1] = False
    assert make_batch([Group(prompt(length=1), (spoken, sample(3, 0.0)))], OBJECTIVE, 1).mask[0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("average", "name"), [("token_mean", "token-mean"), ("sequence_mean", "seq-mean-token-mean")])
def test_averages_equal_the_reference_values(average: str, name: str) -> None:
    golden = GOLDEN["aggregation"]
    matrix = weights(torch.tensor(golden["mask"]), average)  # type: ignore[arg-type]
    assert (torch.tensor(golden["values"]) * matrix).sum().item() == pytest.approx(golden[name])
    assert matrix.sum().item() == pytest.approx(1)


def test_a_sequence_without_tokens_does_not_count_in_the_sequence_mean() -> None:
    assert weights(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "sequence_mean").tolist() == [[0.5, 0.5], [0, 0]]


def ragged(count: int) -> Batch:
    return pad([(prompt(length=1 + i % 3), sample(1 + (7 * i) % 11)) for i in range(count)])


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [14, 40, 1000])
@pytest.mark.parametrize("count", [3, 7, 16])
def test_every_sequence_goes_to_one_micro_batch_within_the_budget(ranks: int, budget: int, count: int) -> None:
    batch = ragged(count)
    shares = split(batch, ranks, budget)
    assert len({len(share) for share in shares}) == 1
    pieces = [piece for share in shares for piece in share]
    assert all(piece.token_ids.numel() <= budget for piece in pieces)
    spoken = [row for piece in pieces for row in range(len(piece)) if piece.mask[row].any()]
    assert len(spoken) == count
    assert sum(piece.mask.sum() for piece in pieces) == batch.mask.sum()


def test_the_gradient_is_the_same_for_every_split() -> None:
    groups = [Group(prompt(f"p{i}"), (sample(2 + i, 1.0), sample(7 - i, 0.0))) for i in range(5)]
    batch = make_batch(groups, OBJECTIVE, 1)

    def gradient(pieces: list[Batch]) -> torch.Tensor:
        table = torch.linspace(-2, -1, 64, dtype=torch.float64).requires_grad_()  # one log-probability per token id
        loss = sum((-piece.advantages * table[piece.token_ids] * piece.weights).sum() for piece in pieces)
        return torch.autograd.grad(loss, table)[0]  # type: ignore[arg-type]

    whole = gradient([batch])
    assert whole.abs().max() > 0
    for ranks in (1, 2, 3, 4):
        for budget in (10, 25, 500):
            shares = split(batch, ranks, budget)
            torch.testing.assert_close(gradient([piece for share in shares for piece in share]), whole)


def test_a_batch_of_fewer_samples_than_ranks_is_refused() -> None:
    with pytest.raises(RloptError, match="2 samples cannot be split over learner.workers=3; use at most 2"):
        split(ragged(2), 3, 100)


def test_a_sequence_over_the_token_budget_is_refused_with_the_budget_it_needs() -> None:
    with pytest.raises(RloptError, match="learner.token_budget=5: a sequence has 12 tokens"):
        split(pad([(prompt(length=2), sample(10))]), 1, 5)


def test_a_group_that_the_reward_left_empty_is_passed_over_and_an_empty_batch_is_refused() -> None:
    assert len(make_batch([Group(prompt(), ()), group()], OBJECTIVE, 1)) == 2
    with pytest.raises(RloptError, match="step 1: no sample is left"):
        make_batch([Group(prompt(), ())], OBJECTIVE, 1)


def test_a_sample_from_the_future_is_refused() -> None:
    with pytest.raises(RloptError, match="newer than the learner"):
        make_batch([group(version=5)], OBJECTIVE, 5)
