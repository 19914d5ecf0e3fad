"""The statistics of a step's data, and the definition of every metric."""

from collections.abc import Mapping

import numpy as np

from rlopt.core.errors import Fault
from rlopt.core.samples import Group, Sample

DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "step": ("count", "learner steps made; the only x axis"),
    "version": ("steps", "learner step of the weights that sampled this batch (oldest token)"),
    "samples_seen": ("samples", "samples learned from so far"),
    "tokens_seen": ("tokens", "response tokens learned from so far"),
    "reward/mean": ("reward", "mean over the samples of the batch"),
    "reward/std": ("reward", "population standard deviation over the samples of the batch"),
    "reward/zero_std_frac": ("share", "groups whose samples all have one reward: no signal"),
    "actor/pg_loss": ("loss", "policy loss as averaged for the gradient, without KL and entropy terms"),
    "actor/pg_clipfrac": ("share", "response tokens whose gradient the clip removes or bounds; of clipping objectives"),
    "actor/pg_clipfrac_lower": ("share", "response tokens that the dual clip bounds (`algo.dual_clip`)"),
    "actor/entropy": ("nats/token", "full-softmax entropy at the sampling temperature, mean over response tokens"),
    "actor/kl_k1": ("nats/token", "mean of u = log policy - log reference"),
    "actor/kl_k2": ("nats/token", "mean of u^2 / 2"),
    "actor/kl_k3": ("nats/token", "mean of exp(-u) - 1 + u; single tokens can dominate it"),
    "actor/grad_norm": ("norm", "global gradient norm before clipping"),
    "actor/lr": ("rate", "learning rate of the step"),
    "actor/updates": ("count", "optimizer updates made in the step (`algo.minibatches`)"),
    "reward/refills": ("groups", "groups without signal that were sampled and replaced (`algo.refills`)"),
    "reward/timeout_frac": ("share", "samples asked for that are left out because their reward took over `reward.timeout_s`"),
    "reward/error_frac": ("share", "samples asked for that are left out because their reward failed"),
    "reward/part/NAME": ("as reported", "mean of what the reward reports as NAME; of several functions, one part each"),
    "env/turns": ("turns", "of the policy in an episode, mean (`env`)"),
    "env/tool_calls": ("calls", "of tools in an episode, mean (`env`)"),
    "env/tool_error_frac": ("share", "calls of tools that were answered with an error; on steps with calls"),
    "env/seconds": ("s", "waiting for the environment of an episode, mean (`env`)"),
    "env/observation_tokens": ("tokens", "of observations in an episode, mean; the policy learns from none (`env`)"),
    "env/cut_frac": ("share", "episodes with an observation over `env.max_observation_chars`"),
    "env/turns_limit_frac": ("share", "episodes that `env.max_turns` ended"),
    "env/budget_limit_frac": ("share", "episodes that `rollout.max_new_tokens` ended"),
    "env/timeout_frac": ("share", "samples asked for that are left out because their environment took over `env.timeout_s`"),
    "env/error_frac": ("share", "samples asked for that are left out because their environment failed"),
    "response_length/mean": ("tokens", "that the policy sampled, mean over samples; end token included, observations not"),
    "response_length/min": ("tokens", "shortest sample"),
    "response_length/max": ("tokens", "longest sample"),
    "response_length/truncated_frac": ("share", "samples that the length limit ended"),
    "response_length/p90": ("tokens", "90th percentile over samples (`sync.mode=async`)"),
    "response_length/finished_mean": ("tokens", "mean of all samples that came back since the last step (`sync.mode=async`)"),
    "response_length/finished_p90": ("tokens", "90th percentile of those (`sync.mode=async`)"),
    "offpolicy/lag_mean": (
        "steps",
        "learner steps between sampling and learning, mean over samples; each has `actor/updates` updates",
    ),
    "offpolicy/lag_max": ("steps", "the largest lag in the batch"),
    "offpolicy/ratio_mean": ("ratio", "mean of r = policy / behavior over response tokens"),
    "offpolicy/ratio_max": ("ratio", "largest r"),
    "offpolicy/ess": ("share", "(sum r)^2 / (tokens * sum r^2)"),
    "offpolicy/behavior_kl": ("nats/token", "mean of log behavior - log policy"),
    "offpolicy/masked_frac": ("share", "response tokens whose importance correction is 0 (`algo.correction`)"),
    "offpolicy/opsm_frac": ("share", "response tokens of sequences that `algo.opsm_delta` masks"),
    "offpolicy/dropped_frac": ("share", "samples asked for that the batch does not hold (left out by the reward)"),
    "offpolicy/dropped_groups": ("groups", "given up since the last step, too old to be learned from (`sync.stale=drop`)"),
    "replay/groups": ("groups", "in the replay buffer"),
    "replay/samples_per_insert": ("ratio", "samples learned from / samples that entered the buffer, since the run began"),
    "replay/dropped": (
        "groups",
        "that left the buffer over `sync.max_lag`, with uses to spare (`replay.reuse`), since the run began",
    ),
    "preference/margin": ("reward", "mean over pairs of chosen less rejected implicit reward"),
    "preference/accuracy": ("share", "pairs whose margin is above 0"),
    "preference/chosen": ("reward", "mean implicit reward beta * (log policy - log reference), summed over the chosen tokens"),
    "preference/rejected": ("reward", "the same of the rejected tokens"),
    "eval/preference/margin": ("reward", "as preference/margin, of the held-out pairs; on steps that measure them"),
    "eval/preference/accuracy": ("share", "as preference/accuracy, of the held-out pairs"),
    "eval/preference/chosen": ("reward", "as preference/chosen, of the held-out pairs"),
    "eval/preference/rejected": ("reward", "as preference/rejected, of the held-out pairs"),
    "eval/actor/pg_loss": ("loss", "as actor/pg_loss, of the held-out rows"),
    "data/epoch": ("count", "times that the recorded rows had been gone through before"),
    "sync/seconds": ("s", "sending all weights to all engines; on steps that sync"),
    "sync/bytes": ("bytes", "weights sent to each engine; on steps that sync"),
    "sync/faults": ("count", "sendings that failed their check and were made again; on steps that sync"),
    "sync/verified": ("1", "1 when engine and learner agreed on the canary prompts; on steps that sync"),
    "sync/canary_abs_diff": ("nats", "largest difference of a canary token's log-probability; on steps that sync"),
    "eval/SET/avg@K": (
        "reward",
        "mean reward of eval.samples=K answers drawn to each prompt of the data set SET; on steps that evaluate",
    ),
    "eval/SET/pass@K": ("share", "prompts of SET of which one of K answers is right (eval.right)"),
    "eval/SET/greedy": ("reward", "mean reward of the greedy answer to each prompt of SET"),
    "eval/SET/unscored": ("answers", "that have no reward; their prompts are left out of the numbers"),
    "timing_s/eval": ("s", "answering the held-out prompts; on steps that evaluate"),
    "timing_s/step": ("s", "wall time of the step"),
    "timing_s/wait_rollout": ("s", "learner waiting for its batch"),
    "timing_s/score": (
        "s",
        "the reference's scores, the policy's where they are needed, and advantages",
    ),
    "timing_s/update": ("s", "forward, backward and optimizer"),
    "timing_s/sync": ("s", "synchronization with its check; on steps that sync"),
    "perf/tokens_per_s": ("tokens/s", "response tokens learned from, by wall time of the step"),
    "perf/samples_per_s": ("samples/s", "samples learned from, by wall time of the step"),
    "perf/learner_peak_gib": ("GiB", "most memory that torch has had on the GPU of a learner rank; on GPUs"),
    "idle/rollout_frac": ("share", "of the time since the last sync in which engines had no request; on steps that sync"),
    "idle/learner_frac": ("share", "of the step's wall time in which the learner neither scores nor updates"),
}
"""Name to (unit, definition). A step logs these, and objective/... of an objective's own; the README's table is this one."""


def batch_metrics(groups: list[Group], step: int, asked: int) -> dict[str, float]:
    """Statistics of the data of learner step `step`; `asked` is the number of samples asked for."""
    samples = [sample for group in groups for sample in group.samples]
    rewards = np.array([sample.reward for sample in samples])
    lengths = np.array([sample.sampled for sample in samples])
    lags = np.array([step - 1 - sample.version for sample in samples])
    faults = [fault for group in groups for fault in group.faults]
    parts = sorted({part for sample in samples for part in sample.parts})
    flat = [len({sample.reward for sample in group.samples}) == 1 for group in groups if group.samples]
    values = {
        "version": step - 1 - lags.max(),
        "reward/mean": rewards.mean(),
        "reward/std": rewards.std(),
        "reward/zero_std_frac": np.mean(flat),
        "reward/refills": sum(group.refills for group in groups),
        "reward/timeout_frac": sum(fault.kind == "timeout" for fault in faults) / asked,
        "reward/error_frac": sum(fault.kind == "error" for fault in faults) / asked,
        **{
            f"reward/part/{part}": np.mean([sample.parts[part] for sample in samples if part in sample.parts]) for part in parts
        },
        "response_length/mean": lengths.mean(),
        "response_length/min": lengths.min(),
        "response_length/max": lengths.max(),
        "response_length/truncated_frac": np.mean([sample.finish == "length" for sample in samples]),
        "offpolicy/lag_mean": lags.mean(),
        "offpolicy/lag_max": lags.max(),
        "offpolicy/dropped_frac": 1 - len(samples) / asked,
        **_episode_metrics(samples, faults, asked),
    }
    return {name: value.item() if isinstance(value, np.generic) else float(value) for name, value in values.items()}


def _episode_metrics(samples: list[Sample], faults: list[Fault], asked: int) -> dict[str, float]:
    """Of samples that are episodes; empty where none is."""
    episodes = [sample.episode for sample in samples if sample.turns]
    lost = {kind: sum(fault.kind == f"env_{kind}" for fault in faults) / asked for kind in ("timeout", "error")}
    if not episodes and not any(lost.values()):
        return {}

    def mean(name: str) -> float:
        return float(np.mean([episode.get(name, 0.0) for episode in episodes])) if episodes else 0.0

    calls = sum(episode.get("tool_calls", 0.0) for episode in episodes)
    errors = sum(episode.get("tool_errors", 0.0) for episode in episodes)
    return {
        "env/turns": mean("turns"),
        "env/tool_calls": mean("tool_calls"),
        **({"env/tool_error_frac": errors / calls} if calls else {}),
        "env/seconds": mean("seconds"),
        "env/observation_tokens": mean("observation_tokens"),
        "env/cut_frac": float(np.mean([episode.get("cut", 0.0) > 0 for episode in episodes])) if episodes else 0.0,
        "env/turns_limit_frac": mean("ended_by_turns"),
        "env/budget_limit_frac": mean("ended_by_budget"),
        "env/timeout_frac": lost["timeout"],
        "env/error_frac": lost["error"],
    }


def table() -> str:
    """The definitions as Markdown."""
    rows = [f"| `{name}` | {unit} | {text} |" for name, (unit, text) in DEFINITIONS.items()]
    return "\n".join(["| metric | unit | definition |", "|---|---|---|", *rows])
