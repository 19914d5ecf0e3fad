"""A summary of a run, printed before it starts."""

from collections.abc import Mapping

from rlopt.cluster.threads import cores
from rlopt.config.passthrough import flat
from rlopt.run.memory import learner_memory, sharing
from rlopt.run.validate import Prepared


def summarize(prepared: Prepared) -> str:
    """The summary: steps, data, synchronization, workers, folder."""
    config, size = prepared.config, prepared.config.data.prompts_per_step
    shape, width = prepared.model.shape, prepared.model.dtype.itemsize
    weights, needs = shape.parameters, learner_memory(config, shape, width, prepared.reference_every > 0)
    memory = f"{(needs.total - needs.activations) / 2**20:.1f} MiB of weights, gradients and optimizer before activations"
    ranks_line = (
        f"{config.learner.workers} learner rank(s){sharing(config.learner)}, ZeRO {config.learner.zero_stage}, {memory}"
    )
    lines, steps = list[str](), config.trainer.total_steps
    if recordings := prepared.data.recordings:
        count = len(recordings.train)
        lines += [f"a step   {size} rows; longest sequence {prepared.data.longest}"]
        lines += [f"data     {count} rows, {steps * size / count:.1f} epochs; {len(recordings.held_out)} held out"]
        lines += [_left_out(key, dropped) for key, dropped in recordings.dropped.items() if dropped]
    else:
        new, replayed, recorded = config.shares
        kinds = ((new, "sampled"), (replayed, "replayed"), (recorded, "recorded"))
        samples = size * config.group_size
        origins = " + ".join(f"{count} {kind}" for count, kind in kinds if count)
        lines += [
            f"a step   {origins} groups of {config.group_size} = {samples} samples, "
            f"at most {samples * config.rollout.max_new_tokens} response tokens; longest sequence {prepared.data.longest}"
        ]
        if data := prepared.data.train:
            count = len(data.prompts)
            lines += [f"data     {count} prompts of {config.data.train}, {data.about}, {steps * new / count:.1f} epochs"]
            lines += [_left_out(name, rows) for name, rows in prepared.data.left_out.items()]
        if experience := prepared.data.experience:
            epochs = steps * recorded / len(experience)
            lines += [f"record   {experience.path}: {len(experience)} groups, {epochs:.1f} epochs"]
            lines += [f"record   {experience.damage}"] if experience.damage else []
            lines += [_left_out("data.experience", experience.dropped)] if experience.dropped else []
        lines += [f"sync     {_describe_sync(prepared)}"] if new else []
    lines += [f"note     {name}: {note}" for name, notes in prepared.data.notes.items() for note in notes]
    if prepared.episodes:
        lines += [f"env      {prepared.episodes.about}", *(f"note     {note}" for note in prepared.episodes.notes)]
    if prepared.data.prompts:
        engine = f"{weights * width / 2**20:.1f} MiB of weights"
        if not config.cluster.gpus_per_engine:
            engine += f" and {config.rollout.kv_cache_gib * 1024:.0f} MiB of KV cache"
        ranks_line = f"{config.rollout.engines} engine(s) with {engine}; {ranks_line}"
    lines += [f"workers  {ranks_line}", f"dtype    {prepared.model.precision.name} ({prepared.model.precision.why})"]
    if not (config.cluster.gpus_per_engine and config.cluster.gpus_per_learner):
        asked, given = f"cluster.cpu_threads={config.cluster.cpu_threads}, {cores()} core(s)", prepared.threads
        lines += [f"threads  {given.engine} of each engine, {given.learner} of each learner rank ({asked})"]
    for name, settings in (("deepspeed", config.learner.deepspeed), ("vllm", config.rollout.vllm)):
        if settings:
            lines += [f"{name:<9} " + ", ".join(f"{key}={value}" for key, value in flat(settings))]
    for folder, damage in prepared.start.damaged.items():
        lines += [f"damaged  {folder.name} is set aside, {damage}; goes on from {prepared.start.resume}"]
    if why := prepared.start.left_behind:
        lines += [f"continue from {prepared.start.resume}, without the samples that it had not learned from: {why}"]
    learn = f", {shape.trainable:,} of adapters learn" if config.learner.lora.rank else ""
    head = (
        f"{config.run.name}: {config.algo.name} on {config.model.path} ({weights:,} parameters{learn}), "
        f"{config.trainer.total_steps} steps"
    )
    return "\n".join([head, *lines, f"folder   {config.run.dir}"])


def _describe_sync(prepared: Prepared) -> str:
    config, schedule = prepared.config, prepared.schedule
    how = f"every {schedule.interval} step(s) by {config.sync_backend}"
    if config.sync.mode == "lockstep":
        return f"{how}, worst lag {schedule.worst_lag}"
    return f"{how}, in flight ({config.sync.in_flight}), lag at most {config.sync.max_lag} ({config.sync.stale})"


def _left_out(key: str, dropped: Mapping[str, list[int]]) -> str:
    return "\n".join(f"left out {len(rows)} row(s) of {key}: {why}" for why, rows in dropped.items())
