"""Settings of DeepSpeed and vLLM that have no key of their own here: `learner.deepspeed` and `rollout.vllm` hand them over."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rlopt.core.errors import RloptError

OURS: dict[str, dict[str, str]] = {
    "learner.deepspeed": {
        "optimizer": "is set by learner.lr, learner.betas and learner.weight_decay",
        "scheduler": "is set by learner.lr_schedule and learner.warmup_steps",
        "gradient_clipping": "is set by learner.max_grad_norm",
        "bf16": "is set by model.dtype",
        "fp16": "is set by model.dtype",
        "train_batch_size": "is set by data.prompts_per_step",
        "train_micro_batch_size_per_gpu": "is set by learner.token_budget",
        "gradient_accumulation_steps": "is set by learner.token_budget",
        "data_types": "is float32, so that gradients do not depend on how a step is cut",
        "communication_data_type": "is float32, so that gradients do not depend on how a step is cut",
        "zero_optimization.stage": "is set by learner.zero_stage",
    },
    "rollout.vllm": {
        "model": "is set by model.path",
        "tokenizer": "is set by model.path",
        "dtype": "is set by model.dtype",
        "seed": "is set by run.seed",
        "tensor_parallel_size": "is set by rollout.tensor_parallel",
        "max_num_seqs": "is set by rollout.max_num_seqs",
        "max_model_len": "is set by the longest prompt and rollout.max_new_tokens",
        "gpu_memory_utilization": "is set by rollout.gpu_memory_share",
        "kv_cache_memory_bytes": "is set by rollout.kv_cache_gib",
        "enable_sleep_mode": "is set by rollout.sleep",
        "weight_transfer_config": "is set by sync.backend",
        "logprobs_mode": "is what the learner takes ratios against",
        "enable_prefix_caching": "is off: what was cached would outlive the weights that made it",
        "scheduler_cls": "is rlopt's own",
        "worker_extension_cls": "is rlopt's own",
    },
}
"""What may not be handed over, and why."""

DEEPSPEED = {
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "csv_monitor", "dump_state", "flops_profiler",
    "gradient_predivide_factor", "memory_breakdown", "prescale_gradients", "sparse_gradients", "steps_per_print", "tensorboard",
    "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
}  # fmt: skip
"""What DeepSpeed knows at the first level and is not ours. It ignores an unknown name there; further in it refuses one."""


def check_handed_over(key: str, given: Mapping[str, Any]) -> None:
    """Refuse what rlopt sets itself, and what DeepSpeed would pass over.

    Raises:
        RloptError: with the key that sets it.
    """
    for name, value in flat(given):
        for ours, why in OURS[key].items():
            if name == ours or name.startswith(f"{ours}."):
                raise RloptError(f"{key}.{name}={value}: {why}; drop it here")
        first = name.partition(".")[0]
        if key == "learner.deepspeed" and first not in DEEPSPEED:
            raise RloptError(f"{key}.{name}={value}: DeepSpeed has no {first}{close(first, DEEPSPEED)}")


def refuse_unknown(given: Mapping[str, Any], known: set[str]) -> None:
    """Refuse what is handed to vLLM, and is none of its `known` arguments."""
    for name, value in given.items():
        if name not in known:
            raise RloptError(f"rollout.vllm.{name}={value}: vLLM has no such argument{close(name, known)}")


def flat(given: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted name."""
    for name, value in given.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `more`, level by level."""
    result = dict(base)
    for name, value in more.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result


def close(name: str, known: Collection[str]) -> str:
    """The end of a sentence that names what was probably meant."""
    found = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {found[0]}" if found else ""
