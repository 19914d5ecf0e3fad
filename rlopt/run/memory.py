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
        gradients: as they are added up, in float32. ZeRO 1 has those of a micro-batch beside them in bfloat16, and ZeRO 2 in
            float32; elsewhere they are the same tensors, or are added up at once.
        optimizer: Adam's two moments, and a float32 master copy under bfloat16 and under ZeRO.
        activations: of a micro-batch of `learner.token_budget` tokens, kept for the backward pass, and its logits.
        buffers: the gradients that ZeRO adds up over ranks at a time, and the weights that ZeRO 3 has gathered at a time.

    On a GPU what waits in host memory (`learner.offload`) is left out, from ZeRO 2 on with the gradients of such an optimizer.
    A reference below ZeRO 3 is there while it is used, and activations are not: it counts as far as it is larger than these.
    """

    weights: float
    reference: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))


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
    master = 4 if width == 2 or learner.zero_stage else 0
    on_gpu = config.cluster.gpus_per_learner > 0
    away = learner.offload if on_gpu else []
    kept = activations(shape, learner, width, on_gpu)
    beside = width if (learner.zero_stage, width) in ((1, 2), (2, 4)) else 0
    frozen = 0 if adapters or not reference else weights / share[0]
    if "reference" in away:
        frozen = 0 if learner.zero_stage == 3 else max(0, frozen - kept)
    return LearnerMemory(
        weights=0 if "parameters" in away else (weights + adapters) / share[0],
        reference=frozen,
        gradients=0 if "optimizer" in away and learner.zero_stage >= 2 else shape.trainable * (4 + beside) / share[1],
        optimizer=0 if "optimizer" in away else shape.trainable * (8 + master) / share[2],
        activations=kept,
        buffers=_buffers(shape, learner, width),
    )


def _buffers(shape: Shape, learner: LearnerConfig, width: int) -> float:
    """ZeRO 1 has a bucket of what is added up over micro-batches, ZeRO 2 of gradients, ZeRO 3 of what is sent to ranks."""
    if not learner.zero_stage:
        return 0
    each = width if learner.zero_stage == 2 else 4
    gathered = min(shape.parameters, learner.live_parameters) * width if learner.zero_stage == 3 else 0
    return learner.reduce_bucket(shape.trainable) * each + gathered


def activations(shape: Shape, learner: LearnerConfig, width: int, on_gpu: bool) -> float:
    """Bytes that a forward pass over `learner.token_budget` tokens keeps, and those that the backward pass adds at most.

    A layer keeps the input of both norms and of both its halves, queries, keys, values and what attention made of them (the
    attention matrix is never kept), and of the feed-forward part gate, up, the activated gate and their product. After the last
    layer the hidden state is kept three times: before and after the norm, and without the tokens that are not scored. In
    bfloat16 a norm also keeps its input in float32. With checkpointing a layer keeps its input, and the backward pass has one
    layer at a time as a whole, after the head.

    Of a chunk of logits there are at most the logits and two float32 tensors of their shape; where they are compiled, the
    logits and their gradient. Beside them is the gradient of the head's weight, twice where there are several chunks.
    """
    tokens = learner.token_budget
    chunk = min(tokens, learner.tokens_of_logits(on_gpu))
    whole, after = _layer(shape, width), 3 * shape.hidden * width + _norm(shape, width)
    weight = shape.vocabulary * shape.hidden * width
    head = chunk * shape.vocabulary * (2 * width if learner.compile else width + 8) + weight * (2 if tokens > chunk else 1)
    if not learner.gradient_checkpointing:
        return float(tokens * (whole * shape.layers + after) + head)
    return float(tokens * (shape.hidden * shape.layers * width + after) + max(head, tokens * whole + weight))


def _layer(shape: Shape, width: int) -> int:
    """Bytes that a layer keeps of a token."""
    kept = 7 * shape.hidden + 2 * shape.kv_heads * shape.head_dim + 4 * shape.intermediate
    return kept * width + 2 * _norm(shape, width)


def _norm(shape: Shape, width: int) -> int:
    return shape.hidden * 4 if width == 2 else 0


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
