"""Two learner ranks learn what one does, however the work is cut; no engine and no Ray."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ranks import Case, Learned, Shares, learn, learner_config, loaded, update

VOCABULARY = 64
LAYOUTS = {"one chunk each": 4096, "several chunks on one rank": 16, "none on one rank": 16}
"""Name to `learner.logit_chunk`. There are 24 and 8 scored tokens; in the last all are on the first rank."""


@dataclass(frozen=True)
class Cut:
    """A way to cut the work."""

    zero: int
    layout: str
    checkpointing: bool
    rank: int

    def __str__(self) -> str:
        names = f"ZeRO {self.zero}", self.layout, "checkpointing" * self.checkpointing, "adapters" * bool(self.rank)
        return ", ".join(name for name in names if name)


CUTS = [
    Cut(zero, layout, bool((zero + place) % 2), 4 * ((zero // 2 + place) % 2))
    for zero in range(4)
    for place, layout in enumerate(LAYOUTS)
]
"""Every pair of ways: each stage meets each layout, both of these meet both of the others, and those each other."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        **sizes, num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=64, tie_word_embeddings=True
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(made)
    return made


ADAPTERS = {"lora": {"rank": 4, "alpha": 8.0, "targets": "all-linear"}}
RECOMPUTED = {"gradient_checkpointing": True, "logit_chunk": 5}
SHARED: dict[str, dict[str, Any]] = {
    "ZeRO 0": {"zero_stage": 0},
    "ZeRO 1, adapters": {"zero_stage": 1, **ADAPTERS},
    "ZeRO 2, offload, recomputed layers, several chunks": {"zero_stage": 2, "offload": ["optimizer"], **RECOMPUTED},
    "ZeRO 3, recomputed layers, several chunks, adapters": {"zero_stage": 3, **RECOMPUTED, **ADAPTERS},
    "ZeRO 3, offload": {"zero_stage": 3, "offload": ["optimizer", "parameters", "reference"]},
}
"""Ways to learn for two ranks that share every sequence."""


def sharing(folder: Path, world: int, **keys: Any) -> Case:
    """Learns from 26 and from 3 tokens. Shared by two ranks, the second has no scored token of the 3, and one of padding."""
    whole = update([24, 1], VOCABULARY)
    config = learner_config(**{"workers": world, "sequence_parallel": world, "zero_stage": 0, **keys})
    return Case(folder, config, torch.float32, [[whole.take([0]), whole.take([1])]] * world)


def case(folder: Path, cut: Cut, world: int) -> Case:
    whole = update([24, 8], VOCABULARY)
    both = [whole.take([0]), whole.take([1])]
    shares: Shares = [both] if world == 1 else [both[:1], both[1:]]
    if world == 2 and cut.layout == "none on one rank":
        shares = [[whole], [whole.dummy()]]
    config = learner_config(
        workers=world,
        zero_stage=cut.zero,
        logit_chunk=LAYOUTS[cut.layout],
        gradient_checkpointing=cut.checkpointing,
        **({"lora": {"rank": cut.rank, "alpha": 8.0, "targets": "all-linear"}} if cut.rank else {}),
    )
    return Case(folder, config, torch.float32, shares)


@dataclass(frozen=True)
class Found:
    """What came of all cases. Starting two ranks costs more than a case, so that they are started once.

    Attributes:
        one: what one rank learned, without and with adapters.
        compiled: the same as the first of `one` with compiled layers, which are recomputed in the backward pass.
        packed: the same with both sequences in one row.
        two: what two ranks learned, by cut.
        handed_over, refused: the same with settings of DeepSpeed's, one of them unknown to it.
        halves: what two ranks learned in bfloat16, by ZeRO stage and micro-batches per rank: that many copies of one, each
            with its share.
        went_on: two ranks that learned, saved, learned on, and a second time from what they saved.
        unshared: what one rank learned of the sequences of `sharing`, without and with adapters.
        shared: what two ranks that share these learned, by `SHARED`.
    """

    one: list[Learned | str]
    compiled: Learned | str
    packed: Learned | str
    two: dict[Cut, Learned | str]
    handed_over: Learned | str
    refused: Learned | str
    halves: dict[tuple[int, int], Learned | str]
    went_on: dict[str, Learned | str]
    unshared: list[Learned | str]
    shared: dict[str, Learned | str]


STAGES, COPIES = (1, 2, 3), 64
KEPT = {
    f"{cut}, {dtype}".replace("torch.", ""): (cut, dtype)
    for turn, dtype in enumerate((torch.float32, torch.bfloat16))
    for cut in (Cut(zero, "one chunk each", False, 4 * ((zero + turn) % 2)) for zero in range(turn, 4))
}
"""Each stage in both types, with and without adapters in turns; stage 0 has no bfloat16."""


def halved(folder: Path, stage: int, pieces: int) -> Case:
    pair = update([24, 8], VOCABULARY)
    parts = [pair.take([rank]) for rank in range(2)]
    shares = [[replace(part, weights=part.weights / pieces)] * pieces for part in parts]
    return Case(folder, learner_config(workers=2, zero_stage=stage, weight_decay=0.0), torch.bfloat16, shares, updates=1)


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    alone = [case(folder, Cut(0, "one chunk each", False, rank), 1) for rank in (0, 4)]
    layers = replace(alone[0], config=replace(alone[0].config, compile=True, gradient_checkpointing=True))
    together = replace(alone[0], config=replace(alone[0].config, packing=True), shares=[[update([24, 8], VOCABULARY)]])
    several = [*alone, layers, together, sharing(folder, 1), sharing(folder, 1, **ADAPTERS)]
    *one, compiled, packed, plain_one, adapted_one = learn(several, 1)
    parted = {name: sharing(folder, 2, **keys) for name, keys in SHARED.items()}
    cuts = {cut: case(folder, cut, 2) for cut in CUTS}
    halves = {(stage, pieces): halved(folder, stage, pieces) for stage, pieces in product(STAGES, (1, COPIES))}
    kept = {
        name: replace(case(folder, cut, 2), dtype=dtype, kept=tmp_path_factory.mktemp("kept"))
        for name, (cut, dtype) in KEPT.items()
    }
    plain, settings = case(folder, Cut(2, "one chunk each", False, 0), 2), {"reduce_bucket_size": 1000, "overlap_comm": False}
    given, unknown = (
        replace(plain, config=replace(plain.config, deepspeed={"zero_optimization": each}))
        for each in (settings | {"offload_optimizer": {"device": "cpu"}}, {"reduce_bucket_seize": 1})
    )
    learned = iter(learn([*cuts.values(), *parted.values(), *halves.values(), *kept.values(), given, unknown], 2))
    two, parts, pieces, again = ({name: next(learned) for name in cases} for cases in (cuts, parted, halves, kept))
    return Found(one, compiled, packed, two, next(learned), next(learned), pieces, again, [plain_one, adapted_one], parts)


def test_settings_that_are_handed_to_deepspeed_reach_it_and_change_no_number(found: Found) -> None:
    both_learned_alike(found.one[0], found.handed_over)
    assert isinstance(found.refused, str)
    assert "reduce_bucket_seize" in found.refused


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_two_ranks_learn_what_one_does(cut: Cut, found: Found) -> None:
    both_learned_alike(found.one[bool(cut.rank)], found.two[cut])


@pytest.mark.parametrize("name", SHARED)
def test_two_ranks_that_share_every_sequence_learn_what_one_does(name: str, found: Found) -> None:
    both_learned_alike(found.unshared["lora" in SHARED[name]], found.shared[name])


def test_compiled_layers_learn_what_others_do(found: Found) -> None:
    both_learned_alike(found.one[0], found.compiled)


def test_packed_sequences_are_learned_from_as_others_are(found: Found) -> None:
    both_learned_alike(found.one[0], found.packed)


def both_learned_alike(one: Learned | str, two: Learned | str) -> None:
    assert isinstance(one, Learned), one
    assert isinstance(two, Learned), two
    for here, there in zip(one.metrics, two.metrics, strict=True):
        for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "offpolicy/ratio_mean"):
            assert there[name] == pytest.approx(here[name], rel=1e-4, abs=1e-6), name
    assert one.moved().abs().max() > 1e-4
    # The sign of a gradient near zero is rounding, and AdamW makes a whole step of it.
    assert (two.moved() - one.moved()).norm() < 0.01 * one.moved().norm()
    assert {name: weight.shape for name, weight in two.weights[0].items()} == {n: w.shape for n, w in one.weights[0].items()}


def test_under_zero_3_a_rank_never_holds_the_whole_model(folder: Path, found: Found) -> None:
    one = found.one[0]
    assert isinstance(one, Learned), one
    whole = sum(weight.numel() for weight in one.weights[0].values())
    ranks = loaded(case(folder, Cut(3, "one chunk each", False, 0), 2), 2)
    assert [(held.gathered, held.sharded) for held in ranks] == [(0, whole // 2)] * 2  # before DeepSpeed has its engine
    assert all(0 < held.most < whole / 2 for held in ranks)  # the embedding, and the largest layer


@pytest.mark.parametrize("stage", STAGES)
def test_in_bfloat16_the_gradient_does_not_depend_on_the_number_of_micro_batches(stage: int, found: Found) -> None:
    one, many = found.halves[stage, 1], found.halves[stage, COPIES]
    assert isinstance(one, Learned), one
    assert isinstance(many, Learned), many
    # A 64th of the gradient is rounded as the gradient is, so that 64 of them make it exactly.
    assert many.metrics[0]["actor/grad_norm"] == pytest.approx(one.metrics[0]["actor/grad_norm"], rel=1e-6)
    assert (many.moved() - one.moved()).norm() <= 1e-6 * one.moved().norm()


@pytest.mark.parametrize("stage", STAGES)
def test_in_bfloat16_the_first_update_moves_a_weight_by_the_learning_rate(stage: int, found: Found) -> None:
    learned = found.halves[stage, 1]
    assert isinstance(learned, Learned), learned
    # AdamW corrects its moments for the number of steps: after one, m / sqrt(v) is the sign of the gradient.
    assert learned.moved().abs().max().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("name", KEPT)
def test_a_learner_continues_from_its_checkpoint_with_the_same_numbers_to_the_last_bit(name: str, found: Found) -> None:
    learned = found.went_on[name]
    assert isinstance(learned, Learned), learned
    assert learned.metrics[2] == learned.metrics[1]
    assert all(torch.equal(again, weight) for weight, again in zip(*(w.values() for w in learned.weights[2:]), strict=True))
    assert not torch.equal(learned.moved(2), learned.moved(1))
