"""Dealing prompts to batches."""

from builders import prompt

from rlopt.core.requests import sample_seed
from rlopt.data.prompt_sampler import PromptSampler


def test_an_epoch_has_every_row_once_and_the_next_in_another_order() -> None:
    prompt_sampler = PromptSampler(10, per_step=4, seed=7)
    dealt = [place for batch in range(1, 6) for place in prompt_sampler.rows(batch)]
    first, second = [[row for row, e in dealt if e == epoch] for epoch in (0, 1)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    forward = PromptSampler(10, 4, seed=7)
    for batch in (1, 2, 3):
        forward.rows(batch)
    assert forward.rows(9) == PromptSampler(10, 4, seed=7).rows(9)
    assert forward.rows(9) != PromptSampler(10, 4, seed=8).rows(9)


def test_spares_are_drawn_anew_for_every_place_and_have_draws_of_their_own() -> None:
    prompts = [prompt(str(i)) for i in range(10)]
    requests = PromptSampler(10, 4, seed=7).requests(2, prompts, refills=3)
    assert [len(request.spares) for request in requests] == [3] * 4
    draws = [spare.draw for request in requests for spare in request.spares]
    assert len(set(draws)) == 12
    assert {request.draw for request in requests} == {"0"}
    assert len({spare.prompt.id for request in requests for spare in request.spares}) > 3
    assert PromptSampler(10, 4, seed=7).requests(2, prompts, refills=0)[0].spares == ()


def test_every_sample_has_a_seed_of_its_own() -> None:
    seeds = {sample_seed(s, p, e, i) for s in (1, 2) for p in ("a", "b") for e in ("0", "1") for i in range(8)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)
