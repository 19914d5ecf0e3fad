"""Batches, their averaging weights, and splits that change nothing."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import OBJECTIVE, batch_of, group, loss_weights, prompt, sample, terms, update_of

from rlopt.core.batches import Batch, Unit
from rlopt.core.errors import Fault, RloptError
from rlopt.core.samples import Example, Group
from rlopt.core.table import SequenceTable, cut
from rlopt.data.collate import tabulate, tabulate_examples
from rlopt.data.microbatches import microbatches, partition
from rlopt.objectives.credit import advantage_inputs, compute_advantages
from rlopt.objectives.dpo import DPO

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())


def test_a_batch_holds_prompt_and_response_and_the_mask_covers_only_the_response() -> None:
    batch = batch_of([Group(prompt(length=3), (sample(2, 1.0), sample(4, 0.0)))], step=8)
    assert batch.token_ids.tolist() == [[5, 6, 7, 20, 21, 0, 0], [5, 6, 7, 20, 21, 22, 23]]
    assert batch.lengths.tolist() == [5, 7]
    assert batch.mask.tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch.rollout_logprobs[0].tolist() == [0, 0, 0, -0.5, -0.5, 0, 0]
    assert batch.advantages[1].tolist() == [0, 0, 0, -0.5, -0.5, -0.5, -0.5]
    assert batch.lag.tolist() == [7, 7]


def test_a_token_that_the_policy_did_not_sample_is_masked_out() -> None:
    one = sample(3)
    one.action_mask[1] = False
    assert batch_of([Group(prompt(length=1), (one, sample(3, 0.0)))]).mask[0].tolist() == [0, 1, 0, 1]


AVERAGES = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "sequence_sum": "seq-mean-token-sum",
    "constant_sum": "seq-mean-token-sum-norm(norm=3) [sum/norm, NOT divided by #seq]",
    "constant": "dr_grpo(TRL) sum/(N*max_len=3)",
}


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_equal_the_reference_values(average: str) -> None:
    golden = GOLDEN["aggregation"]
    matrix = loss_weights(torch.tensor(golden["mask"]), average, torch.tensor([0, 0]), 3)  # type: ignore[arg-type]
    assert (torch.tensor(golden["values"]) * matrix).sum().item() == pytest.approx(golden[AVERAGES[average]])


def test_a_sequence_without_tokens_does_not_count_in_the_sequence_mean() -> None:
    mask, group = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 0])
    assert loss_weights(mask, "sequence_mean", group, 2).tolist() == [[0.5, 0.5], [0, 0]]


def test_the_mean_over_pairs_weighs_the_first_token_of_each_pair() -> None:
    mask = torch.tensor([[0.0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    assert loss_weights(mask, "pair_mean", torch.tensor([0, 0, 1, 1]), 3).tolist() == [
        [0, 0.5, 0],
        [0, 0, 0],
        [0, 0, 0.5],
        [0, 0, 0],
    ]


def ragged(count: int) -> SequenceTable:
    return tabulate([Group(prompt(length=1 + i % 3), (sample(1 + (7 * i) % 11),)) for i in range(count)], 1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [14, 40, 1000])
@pytest.mark.parametrize("count", [3, 7, 16])
def test_every_sequence_goes_to_one_micro_batch_within_the_budget(ranks: int, budget: int, count: int) -> None:
    lengths = ragged(count).lengths
    layout = partition(lengths, torch.arange(count), ranks, budget)
    assert len({len(share) for share in layout}) == 1
    pieces = [piece for share in layout for piece in share if piece]
    assert all(len(piece) * int(lengths[piece].max()) <= budget for piece in pieces)
    assert sorted(row for piece in pieces for row in piece) == list(range(count))


def test_a_micro_batch_is_cut_where_that_saves_padding_and_not_where_it_saves_little() -> None:
    lengths = torch.tensor([100, 20, 100, 21, 30, 100])
    # of 6 * 100 tokens a cut behind the third shortest saves 3 * 70; another among the short ones would save 2 * 9
    assert partition(lengths, torch.arange(6), ranks=1, token_budget=4096) == [[[1, 3, 4], [0, 2, 5]]]
    # of a budget of 16384 a 64th is 256, and 210 are not worth another pass
    assert partition(lengths, torch.arange(6), ranks=1, token_budget=16384) == [[[1, 3, 4, 0, 2, 5]]]


def test_a_packed_micro_batch_holds_as_many_real_tokens_as_the_budget() -> None:
    lengths = torch.tensor([10, 2, 3, 5])
    # Padded, 2 + 3 + 5 would be 15 tokens, and 10 beside them 40; packed they are 10, and 20 with the longest.
    assert partition(lengths, torch.arange(4), 1, 10, packed=True) == [[[1, 2, 3], [0]]]
    assert partition(lengths, torch.arange(4), 1, 20, packed=True) == [[[1, 2, 3, 0]]]
    assert partition(lengths, torch.tensor([0, 0, 1, 1]), 1, 12, packed=True) == [[[2, 3], [0, 1]]]
    with pytest.raises(RloptError, match="what must stay together has 12 tokens"):
        partition(lengths, torch.tensor([0, 0, 1, 1]), 1, 11, packed=True)


def test_a_batch_without_a_reference_stays_so_when_it_is_split_and_sent() -> None:
    ((piece,),) = microbatches(replace(update_of([group("p", (1.0, 0.0))]), reference=None), "sequence", 1, 100)
    arrived = pickle.loads(pickle.dumps(piece))
    assert (arrived.reference, piece.batch().reference, piece.dummy().batch().reference) == (None, None, None)


def test_an_update_that_was_split_and_sent_makes_the_same_batch() -> None:
    one = sample(3, version=2)
    one.action_mask[1] = False
    groups = [Group(prompt(length=2), (one, sample(1, 0.0))), Group(prompt("q", 4), (sample(5, 1.0, prompt_id="q"),))]
    update = update_of(groups, step=4)
    wider, whole = replace(update, old_logprobs=torch.full((3, 9), -2.0)), update.batch()
    for rows in ([0, 1, 2], [1], [2, 0]):
        arrived = pickle.loads(pickle.dumps(wider.take(rows))).batch()
        expected, width = replace(whole, old_logprobs=-2.0 * whole.mask), int(whole.lengths[rows].max())
        for name, tensor in vars(expected).items():
            assert torch.equal(getattr(arrived, name), cut(tensor, rows, width)), name


def test_siblings_stay_in_one_micro_batch_where_the_objective_needs_them() -> None:
    lengths = torch.tensor([3, 9, 4, 4, 8, 2])
    layout = partition(lengths, torch.tensor([0, 0, 1, 1, 2, 2]), ranks=1, token_budget=18)
    assert sorted(map(sorted, layout[0])) == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(RloptError, match="learner.token_budget=17: what must stay together has 18 tokens; raise it to 18"):
        partition(lengths, torch.tensor([0, 0, 1, 1, 2, 2]), ranks=1, token_budget=17)


def test_the_gradient_is_the_same_for_every_split() -> None:
    update = update_of([Group(prompt(), (sample(2 + i, 1.0), sample(7 - i, 0.0))) for i in range(5)])

    def gradient(pieces: list[Batch]) -> torch.Tensor:
        table = torch.linspace(-2, -1, 64, dtype=torch.float64).requires_grad_()  # one log-probability per token id
        loss = sum((-piece.advantages * table[piece.token_ids] * piece.weights).sum() for piece in pieces)
        return torch.autograd.grad(loss, table)[0]  # type: ignore[arg-type]

    whole = gradient([update.batch()])
    assert whole.abs().max() > 0
    units: tuple[Unit, ...] = ("sequence", "group")
    for unit in units:
        for ranks in (1, 2, 3, 4):
            for budget in (20, 25, 500):
                shares = microbatches(update, unit, ranks, budget)
                assert sum(piece.tokens for share in shares for piece in share) == update.tokens == 45
                torch.testing.assert_close(gradient([piece.batch() for share in shares for piece in share]), whole)


def test_of_fewer_samples_than_ranks_each_goes_to_one_rank_and_the_others_get_none() -> None:
    assert partition(torch.tensor([4, 9]), torch.arange(2), 3, 100) == [[[1]], [[0]], [[]]]  # a piece that is halved goes last
    assert partition(torch.tensor([4, 9]), torch.tensor([7, 7]), 3, 100) == [[[0, 1]], [[]], [[]]]
    shares = microbatches(update_of([group("p", (1.0, 0.0))]), "sequence", 3, 100)
    batches = [[piece.batch() for piece in share] for share in shares]
    assert [[batch.mask.sum().item() for batch in share] for share in batches] == [[3], [2], [0]]
    assert sum(batch.weights.sum() for share in batches for batch in share) == pytest.approx(1)


def test_one_sample_that_a_reward_left_out_leaves_a_step_that_can_be_split() -> None:
    left = [Group(prompt(f"p{i}"), (sample(prompt_id=f"p{i}"),)) for i in range(31)]
    shares = microbatches(update_of([*left, Group(prompt("late"), ())]), "sequence", 32, 100)
    assert [len(share) for share in shares] == [1] * 32
    assert sum(piece.tokens > 0 for share in shares for piece in share) == 31


def test_a_sequence_over_the_token_budget_is_refused_with_the_budget_it_needs() -> None:
    with pytest.raises(RloptError, match="learner.token_budget=5: what must stay together has 12 tokens"):
        partition(torch.tensor([12]), torch.arange(1), 1, 5)


def test_a_group_that_the_reward_left_empty_is_passed_over_and_an_empty_batch_is_refused() -> None:
    assert len(tabulate([Group(prompt(), ()), group()], 1)) == 2
    with pytest.raises(RloptError, match="step 1: no sample is left to learn from; the reward returned None for all of them"):
        tabulate([Group(prompt(), ())], 1)
    why = "reward.fn=mine.py:f raised ValueError: no idea on Question(...)"
    with pytest.raises(RloptError, match=r"step 1: no sample is left to learn from; reward.fn=mine.py:f raised ValueError"):
        tabulate([Group(prompt(), ()), Group(prompt(), (), faults=(Fault("error", why), Fault("error", "later")))], 1)


def test_a_sample_from_the_future_is_refused() -> None:
    with pytest.raises(RloptError, match="newer than the learner"):
        tabulate([group(version=5)], 5)


def test_several_updates_share_out_whole_groups_and_each_has_weights_of_its_own() -> None:
    groups = [group(f"p{i}", (1.0, 0.0, 0.0)) for i in range(5)]
    sequences = tabulate(groups, 1)
    batches = [part.batch() for part in compute_advantages(sequences, None, None, OBJECTIVE, terms(), updates=2)]
    assert [sorted(set(batch.group.tolist())) for batch in batches] == [[0, 1, 2], [3, 4]]
    assert [batch.weights.sum().item() for batch in batches] == pytest.approx([1, 1])
    assert torch.cat([b.advantages.max(1).values for b in batches]).tolist().count(pytest.approx(2 / 3)) == 5


def test_the_overlong_penalty_lowers_the_reward_and_the_filter_keeps_the_siblings_advantages() -> None:
    cut = Group(prompt(), (sample(4, 1.0, finish="length"), sample(2, 0.0)))
    sequences = tabulate([cut], 1)
    punished = advantage_inputs(sequences, None, None, terms(overlong_buffer=0.5))  # limit 4, so the last 2 tokens
    assert punished.rewards.tolist() == [0.0, 0.0]
    (update,) = compute_advantages(sequences, None, None, OBJECTIVE, terms(overlong_filter=True))
    batch = update.batch()
    assert update.tokens == 2
    assert batch.mask.sum(1).tolist() == [0, 2]
    assert batch.advantages.min().item() == pytest.approx(-0.5)


def test_kl_in_the_reward_is_that_of_the_anchor_and_takes_from_every_token() -> None:
    sequences = tabulate([Group(prompt(length=1), (sample(2, 1.0), sample(1, 0.0)))], 1)
    rows = sequences.padded()
    reference = rows.rollout_logprobs - 0.25 * rows.mask  # k1 = 0.25 a token
    outcomes = advantage_inputs(sequences, None, reference, terms(kl_coef=2.0, kl_estimator="k1", kl_place="reward"))
    assert outcomes.penalties.tolist() == [[0, 0.5, 0.5], [0, 0.5, 0]]
    assert outcomes.returns.tolist() == [0.0, -0.5]


def test_recorded_answers_become_pairs_with_the_better_one_first() -> None:
    sequences = tabulate_examples([Example(prompt(length=2), ((7, 8, 9), (7,))), Example(prompt(length=1), ((3,), (4, 5)))])
    assert sequences.rewards.tolist() == [1, 0, 1, 0]
    assert sequences.group.tolist() == [0, 0, 1, 1]
    assert sequences.sampled.tolist() == [3, 1, 1, 2]
    zero = torch.zeros(sequences.shape)
    (update,) = compute_advantages(sequences, zero, zero, DPO(beta=0.1, label_smoothing=0.0), terms(off_policy=False))
    batch = update.batch()
    assert batch.advantages.sum(1).tolist() == [3, -1, 1, -2]
    assert batch.weights.sum().item() == 1


def test_random_keys_depend_on_the_tokens_and_not_on_order() -> None:
    one, two = group("a", (1.0, 0.0)), group("b", (0.0, 0.0, 0.0))
    there, back = tabulate([one, two], 1).random_key, tabulate([two, one], 1).random_key
    assert there.tolist() == [*back[3:].tolist(), *back[:3].tolist()]
    same = tabulate([Group(prompt(), (sample(2), sample(2)))], 1).random_key
    assert same[0] != same[1]
    assert all(0 <= number < 1 for number in there)


def test_samples_of_another_prompt_are_refused_in_a_group() -> None:
    with pytest.raises(RloptError, match="Group.samples: sample 1 answers prompt q, the group's is p"):
        Group(prompt("p"), (sample(), sample(prompt_id="q")))
