"""What a config needs, from the model's config alone: samples, tokens, updates, lag, and memory of every worker.

The memory is that of tensors whose size follows from the config; what the libraries take beside it does not.
"""

from dataclasses import dataclass

from rlopt.config.learners import LearnerConfig
from rlopt.config.schema import Config
from rlopt.models.loading import Shape
from rlopt.run.precision import Precision

GIB = 2**30


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes of one learner rank.

    Attributes:
        weights: of the policy.
        reference: of the frozen initial model; 0 with adapters, where that is the policy without them, and where none is
            needed.
        gradients: as they are added up, in float32.
        optimizer: Adam's two moments, and a float32 master copy under bfloat16.
        activations: of a micro-batch of `learner.token_budget` tokens, kept for the backward pass, and its logits.

    On a GPU what waits in host memory (`learner.offload`) is left out, from ZeRO 2 on with the gradients of such an optimizer.
    A reference below ZeRO 3 is there while it is used, and activations are not: it counts as far as it is larger than these.
    """

    weights: float
    reference: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.reference + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one rank of an engine: its share of the weights, and of the keys and values of one token."""

    weights: float
    per_token: float


def learner_memory(config: Config, shape: Shape, width: int, reference: bool) -> LearnerMemory:
    """`width` is the bytes of a number of the model: 4 or 2; `reference`: whether there is one."""
    learner = config.learner
    share = [learner.workers if learner.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    weights, adapters = shape.parameters * width, shape.trainable * width if learner.lora.rank else 0
    master = 4 if width == 2 else 0
    away = learner.offload if config.cluster.gpus_per_learner else []
    kept = activations(shape, learner.token_budget, learner.logit_chunk, width, learner.gradient_checkpointing)
    frozen = 0 if adapters or not reference else weights / share[0]
    if "reference" in away:
        frozen = 0 if learner.zero_stage == 3 else max(0, frozen - kept)
    return LearnerMemory(
        weights=0 if "parameters" in away else (weights + adapters) / share[0],
        reference=frozen,
        gradients=0 if "optimizer" in away and learner.zero_stage >= 2 else shape.trainable * 4 / share[1],
        optimizer=0 if "optimizer" in away else shape.trainable * (8 + master) / share[2],
        activations=kept,
    )


def activations(shape: Shape, tokens: int, logit_chunk: int, width: int, checkpointing: bool) -> float:
    """Bytes that a forward pass over `tokens` tokens keeps.

    A layer keeps the input of both norms and of both its halves, queries, keys, values and what attention made of them (the
    attention matrix is never kept), and of the feed-forward part gate, up, the activated gate and their product. With
    checkpointing a layer keeps its input, and one layer at a time is there as a whole. After the last layer the hidden state is
    kept three times: before and after the norm, and without the tokens that are not scored. Logits stand there a chunk at a
    time, in float32, with their log-softmax and gradient.
    """
    keys_values = 2 * shape.kv_heads * shape.head_dim
    whole = 7 * shape.hidden + keys_values + 4 * shape.intermediate
    layers = shape.hidden * shape.layers + whole if checkpointing else whole * shape.layers
    after = 3 * shape.hidden
    return float(tokens * (layers + after) * width + min(tokens, logit_chunk) * shape.vocabulary * 4 * 3)


def engine_memory(config: Config, shape: Shape, width: int) -> EngineMemory:
    ranks = config.rollout.tensor_parallel
    return EngineMemory(
        weights=shape.parameters * width / ranks,
        per_token=2 * shape.layers * shape.kv_heads * shape.head_dim * width / min(ranks, shape.kv_heads),
    )


def checkpoint_bytes(config: Config, shape: Shape, width: int) -> float:
    """Bytes of a checkpoint: `hf/`, the weights once more below ZeRO 3, and the optimizer's state in float32."""
    learner = config.learner
    copies = 1 if learner.zero_stage == 3 or learner.lora.rank else 2
    return float(copies * shape.parameters * width + shape.trainable * (12 if learner.zero_stage else 8))


def plan(config: Config, shape: Shape, precision: Precision, reference: bool) -> list[tuple[str, str]]:
    """The plan of a run, with a `reference` or without, as (subject, text), from the config and the model's config alone."""
    width = precision.dtype.itemsize
    steps, data, algo = config.trainer.total_steps, config.data, config.algo
    lines = [("run", f"{algo.name} on {config.model.path}, {shape.parameters:,} parameters, {steps} steps")]
    lines += [("dtype", f"{precision.name} ({precision.why})")]
    if config.learner.lora.rank:
        lines += [
            ("adapters", f"rank {config.learner.lora.rank}, {shape.trainable:,} parameters, which alone learn and are sent")
        ]
    if algo.group_relative:
        samples, limit = config.samples_per_step, config.rollout.max_new_tokens
        updates = algo.group_relative.minibatches
        lines += [
            ("data", f"{data.train or data.experience}, not read"),
            ("a step", f"{data.prompts_per_step} groups of {config.group_size} = {samples} samples, {updates} update(s)"),
            ("tokens", f"at most {samples * limit:,} response tokens a step, {samples * limit * steps:,} in all"),
        ]
    else:
        lines += [("data", f"{data.train}, not read"), ("a step", f"{data.prompts_per_step} rows")]
    if config.samples:
        lag = config.sync.offset + config.sync.interval - 1 if config.sync.mode == "lockstep" else config.sync.max_lag
        carried = shape.trainable * width
        lines += [
            (
                "sync",
                f"every {config.sync.interval} step(s) by {config.sync_backend}, {readable(carried)} each, worst lag {lag}",
            ),
            ("engines", _engines(config, engine_memory(config, shape, width))),
        ]
    memory, learner = learner_memory(config, shape, width, reference), config.learner
    where = f"{config.cluster.gpus_per_learner:g} GPU" if config.cluster.gpus_per_learner else "CPU"
    parts = ", ".join(f"{name} {readable(value)}" for name, value in vars(memory).items())
    ranks = f"{learner.workers} of {where}{sharing(learner)}, ZeRO {learner.zero_stage}"
    lines += [("learners", f"{ranks}: {readable(memory.total)} each ({parts})")]
    kept = f"{readable(checkpoint_bytes(config, shape, width))} each, the newest {config.trainer.keep_checkpoints} are kept"
    return [*lines, ("disk", f"checkpoints of {kept}"), ("GPUs", _gpus(config))]


def _engines(config: Config, memory: EngineMemory) -> str:
    rollout, cluster = config.rollout, config.cluster
    where = f"{rollout.tensor_parallel} x {cluster.gpus_per_engine:g} GPU" if cluster.gpus_per_engine else "CPU"
    room = (
        f"{rollout.gpu_memory_share:.0%} of the card" if cluster.gpus_per_engine else f"{rollout.kv_cache_gib:g} GiB of cache"
    )
    room += ", asleep while the learner learns" if rollout.sleep else ""
    full = memory.per_token * rollout.max_num_seqs * rollout.max_new_tokens
    return (
        f"{rollout.engines} of {where}: weights {readable(memory.weights)} each, KV cache {readable(memory.per_token)} a "
        f"token, {readable(full)} for {rollout.max_num_seqs} full responses; has {room}"
    )


def _gpus(config: Config) -> str:
    engines = config.rollout.engines * config.rollout.tensor_parallel * config.cluster.gpus_per_engine if config.samples else 0
    learners = config.learner.workers * config.cluster.gpus_per_learner
    return f"{engines + learners:g} in all: {engines:g} for engines, {learners:g} for learners"


def sharing(learner: LearnerConfig) -> str:
    """What is said of ranks that share sequences."""
    return f", {learner.sequence_parallel} to a sequence" if learner.sequence_parallel > 1 else ""


def readable(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
