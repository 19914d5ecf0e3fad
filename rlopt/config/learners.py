"""The section `learner`: the ranks that learn, and how."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlopt.config.bounds import AtLeastOne, AutoOrCount, OffOrMore, Positive
from rlopt.config.passthrough import check_handed_over
from rlopt.config.sections import section
from rlopt.core.errors import need


@section
class LoraConfig:
    rank: Annotated[int, Field(ge=0, description="must be 0 (off: all weights learn) or more")]
    alpha: Positive
    targets: str | list[str]

    def __post_init__(self) -> None:
        for key, value, default in (("alpha", self.alpha, 32.0), ("targets", self.targets, "all-linear")):
            vain = not self.rank and value != default
            need(not vain, f"learner.lora.{key}", value, "means nothing without learner.lora.rank; set that too")
        named = self.targets == "all-linear" or (isinstance(self.targets, list) and self.targets)
        way_out = "give all-linear, or a list of layer names such as [q_proj,v_proj]"
        need(bool(named), "learner.lora.targets", self.targets, way_out)


Beta = Annotated[float, Field(ge=0, lt=1)]


BUCKET_KEY, LIVE_KEY = "reduce_bucket_size", "stage3_max_live_parameters"
"""Of DeepSpeed's settings, those that the plan of a run reads."""

REDUCE_BUCKET = 50_000_000
"""200 MB in float32: long enough for the full speed of a network, and little beside a model."""


@section
class LearnerConfig:
    workers: AtLeastOne
    sequence_parallel: AtLeastOne
    zero_stage: Literal[0, 1, 2, 3]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="must be above 0")]
    lr_schedule: Literal["constant", "linear", "cosine"]
    betas: Annotated[
        list[Beta],
        Field(min_length=2, max_length=2, description="AdamW has two, at least 0 and below 1, e.g. [0.9, 0.999]"),
    ]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, description="must be 0 (off) or above")]
    warmup_steps: OffOrMore
    max_grad_norm: Positive
    token_budget: int
    packing: bool
    logit_chunk: AutoOrCount
    gradient_checkpointing: bool
    compile: bool
    offload: list[Literal["optimizer", "parameters", "reference"]]
    lora: LoraConfig
    deepspeed: dict[str, Any]

    def __post_init__(self) -> None:
        check_handed_over("learner.deepspeed", self.deepspeed)
        zero, place = self.deepspeed.get("zero_optimization", {}), "learner.deepspeed.zero_optimization"
        need(isinstance(zero, dict), place, zero, "must be settings with their names, e.g. {overlap_comm: false}")
        for name in (BUCKET_KEY, LIVE_KEY):
            value = zero.get(name, 1)
            need(isinstance(value, int | float) and value >= 1, f"{place}.{name}", value, "must be at least 1")
        way_out = "gathers weights layer by layer, around what is compiled; leave it out, or use learner.zero_stage=2"
        need(not self.compile or self.zero_stage < 3, "learner.compile", self.compile, f"learner.zero_stage=3 {way_out}")
        ranks, key = self.sequence_parallel, "learner.sequence_parallel"
        way_out = f"learner.workers={self.workers} is no multiple of it, and every sequence is shared by so many of them"
        need(self.workers % ranks == 0, key, ranks, way_out)
        way_out = "ranks exchange heads inside what is compiled; set learner.compile=false"
        need(ranks == 1 or not self.compile, key, ranks, way_out)
        way_out = "ranks share sequences of their own rows; leave one of them out"
        need(ranks == 1 or not self.packing, "learner.packing", self.packing, f"with {key}={ranks} {way_out}")
        least = {"optimizer": 1, "parameters": 3}
        for what in self.offload:
            stage = least.get(what, 0)
            need(self.zero_stage >= stage, "learner.offload", what, f"DeepSpeed does that with learner.zero_stage={stage}")
        alone = "reference" not in self.offload or not self.lora.rank
        need(alone, "learner.offload", "reference", "with learner.lora the policy without adapters is the reference; drop it")

    def tokens_of_logits(self, on_gpu: bool) -> int:
        """`logit_chunk`, and what auto stands for: on a GPU chunks of 1,024 are as fast as larger ones and take less memory; a
        CPU makes the logits of smaller chunks again for nothing.
        """
        return self.logit_chunk if self.logit_chunk != "auto" else 1024 if on_gpu else 4096

    def reduce_bucket(self, trainable: int) -> int:
        """Gradients that ZeRO adds up over ranks at a time; it holds a buffer for as many. DeepSpeed's own default is ten times
        as much.
        """
        return self._of_zero(BUCKET_KEY) or min(REDUCE_BUCKET, trainable)

    @property
    def live_parameters(self) -> int:
        """Weights that ZeRO 3 has gathered at most, but for those of one layer; DeepSpeed's default."""
        return self._of_zero(LIVE_KEY) or 1_000_000_000

    def _of_zero(self, name: str) -> int:
        return int(self.deepspeed.get("zero_optimization", {}).get(name, 0))

    @property
    def tokens_at_once(self) -> int:
        """Of a micro-batch, padding included: each rank that shares its sequences has `token_budget` of them."""
        return self.token_budget * self.sequence_parallel
