"""The loop of a run: its source, samplers, synchronizer and evaluation, put together from what was prepared."""

from collections.abc import Callable

import torch

from rlopt.config.schema import Config
from rlopt.core.samples import Prompt
from rlopt.core.supervisor import Supervisor
from rlopt.data.prompt_sampler import PromptSampler
from rlopt.data.reference_scores import ReferenceScores
from rlopt.evaluation.evaluator import Evaluator, sampling_specs
from rlopt.orchestrator.async_sampling import AsyncPlan, AsyncSampler, after, streamed
from rlopt.orchestrator.decisions import Decisions
from rlopt.orchestrator.lockstep import LockstepSampler, restore_engines, sampled_groups
from rlopt.orchestrator.loop import Loop, Plan, Source
from rlopt.orchestrator.online_source import Evaluation, OnlineSource, Samplers, Shares
from rlopt.orchestrator.recorded_source import RecordedSource, References
from rlopt.orchestrator.replay_buffer import ReplayBuffer, ReplayPlan
from rlopt.rollout.engine_pool import EnginePool
from rlopt.rollout.vllm_engine import CANARY_PLACES
from rlopt.run.engine_count import wanted_engines
from rlopt.run.saving import Saving
from rlopt.run.validate import Prepared
from rlopt.run.workers import RunWorkers
from rlopt.tracking.journal import Journal
from rlopt.weight_sync.synchronizer import Synchronizer, canary_texts


def make_loop(
    prepared: Prepared,
    workers: RunWorkers,
    journal: Journal,
    supervisor: Supervisor | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Loop:
    config, supervisor = prepared.config, supervisor or Supervisor()
    shared = config.algo.group_relative
    decisions = _decisions(prepared)
    canaries = canary_texts(_some_prompts(prepared), CANARY_PLACES)
    saving = Saving(prepared, workers, journal, supervisor, canaries, decisions)
    return Loop(
        plan=Plan(
            total_steps=config.trainer.total_steps,
            save_every=config.trainer.save_every,
            record=config.run.record,
            old_logprobs=shared.old_logprobs if shared else "behavior",
            minibatches=shared.minibatches if shared else 1,
            reference_every=prepared.reference_every,
        ),
        objective=prepared.objective,
        terms=prepared.terms,
        source=_source(prepared, workers, journal, decisions),
        learners=workers.learners,
        journal=journal,
        save=saving.save,
        asked_to_save=saving.asked,
        asked_to_stop=asked_to_stop,
        stepped=supervisor.stepped,
    )


def _decisions(prepared: Prepared) -> Decisions | None:
    """What an asynchronous run had decided after its checkpoint."""
    start, config = prepared.start, prepared.config
    if config.sync.mode != "async" or not prepared.data.prompts:
        return None
    step, waits = start.state["position"]["step"], config.waits_for_room
    return Decisions(start.run, step, begins=start.origin is not None, waits=waits)


def _some_prompts(prepared: Prepared) -> list[Prompt]:
    """The first prompts of a run, from any source."""
    if prepared.data.recordings:
        return [example.prompt for example in prepared.data.recordings.train[:CANARY_PLACES]]
    if not prepared.data.prompts and prepared.data.experience:
        return [group.prompt for group in prepared.data.experience.groups(0, min(CANARY_PLACES, len(prepared.data.experience)))]
    return prepared.data.prompts


def _source(prepared: Prepared, workers: RunWorkers, journal: Journal, decisions: Decisions | None) -> Source:
    config, pending = prepared.config, workers.pending
    if recordings := prepared.data.recordings:
        return RecordedSource(
            examples=recordings.train,
            held_out=recordings.held_out,
            prompt_sampler=PromptSampler(len(recordings.train), config.data.prompts_per_step, config.run.seed),
            references=_references(prepared, workers, journal) if prepared.reference_every else None,
            learners=workers.learners,
            objective=prepared.objective,
            terms=prepared.terms,
            eval_every=config.trainer.eval_every,
            total_steps=config.trainer.total_steps,
        )
    replay = None
    if config.replay.capacity:
        kept = config.replay
        replay = ReplayBuffer(ReplayPlan(kept.capacity, kept.reuse, kept.decay, config.sync.max_lag))
        if "replay" in pending.facts:
            replay.restore(pending)
    samplers = None
    if workers.engines and prepared.data.prompts:
        samplers = _samplers(prepared, workers, workers.engines, journal, decisions)
    evaluation = None
    if workers.engines and samplers and prepared.data.evals:
        every, interval, steps = config.trainer.eval_every, config.sync.interval, config.trainer.total_steps
        evaluation = Evaluation(every, interval, steps, _evaluator(prepared, workers.engines, samplers.sync).measure)
    return OnlineSource(
        shares=Shares(*config.shares, config.group_size),
        samplers=samplers,
        replay=replay,
        recorded=prepared.data.experience.groups if prepared.data.experience else None,
        learners=workers.learners,
        evaluation=evaluation,
    )


def _references(prepared: Prepared, workers: RunWorkers, journal: Journal) -> References:
    about = {key: prepared.about[key] for key in ("tokenizer", "model", "temperature")}
    kept = ReferenceScores(prepared.start.run, about | {"dtype": prepared.model.precision.name}, prepared.start.origin)
    return References(workers.learners.score_reference, kept, journal.say)


def _evaluator(prepared: Prepared, engines: EnginePool, sync: Synchronizer) -> Evaluator:
    plan = prepared.config.eval
    return Evaluator(
        sets={name: loaded.prompts for name, loaded in prepared.data.evals.items()},
        sampling_specs=sampling_specs(plan.samples, plan.temperature, plan.top_p, plan.greedy),
        right=plan.right,
        engines=engines,
        deadline_s=prepared.config.cluster.step_deadline_s,
        restore_engines=lambda: restore_engines(engines, sync, sync.version),
    )


def _samplers(
    prepared: Prepared, workers: RunWorkers, engines: EnginePool, journal: Journal, decisions: Decisions | None
) -> Samplers:
    config, pending, sync, prompts = prepared.config, workers.pending, prepared.config.sync, prepared.data.prompts
    new, deadline_s = config.shares[0], config.cluster.step_deadline_s
    refills = config.algo.group_relative.refills if config.algo.group_relative else 0
    prompt_sampler = PromptSampler(len(prompts), new, config.run.seed)
    synchronizer = Synchronizer(
        learners=workers.learners,
        engines=engines,
        canaries=canary_texts(prompts, CANARY_PLACES),
        verify=sync.verify,
        tolerance=sync.tolerance * rounding_slack(config, prepared.model.dtype),
        ranks_per_engine=config.rollout.tensor_parallel,
        journal=journal,
        wanted=lambda: wanted_engines(prepared.start.run, config.rollout.engines),
    )
    if sync.mode == "lockstep":
        again = [(batch, place) for batch, place in pending.facts.get("again", [])]
        batches = sampled_groups(pending.sections, again)
        engines.put_back(batches)
        return LockstepSampler(
            schedule=prepared.schedule,
            requests_of=lambda batch: prompt_sampler.requests(batch, prompts, refills),
            engines=engines,
            sync=synchronizer,
            total_steps=config.trainer.total_steps,
            deadline_s=deadline_s,
            sleep=config.rollout.sleep,
            requested=max([prepared.start.state["position"]["step"], *(batch for batch, _ in [*batches, *again])]),
            restored=set(pending.facts.get("revived", [])),
            again=again,
        )
    assert decisions is not None
    under = after(streamed(pending), decisions.ahead)
    engines.put_back(under.done)
    assert sync.max_lag is not None
    return AsyncSampler(
        plan=AsyncPlan(
            per_step=new,
            total_steps=config.trainer.total_steps,
            interval=sync.interval,
            max_lag=sync.max_lag,
            stale=sync.stale,
            ahead=2 * max(1, config.rollout.engines * config.rollout.max_num_seqs // config.group_size),
            deadline_s=deadline_s,
        ),
        request_of=lambda number: prompt_sampler.requests(number // new + 1, prompts, refills)[number % new],
        engines=engines,
        sync=synchronizer,
        next=under.next,
        again=under.under_way,
        decisions=decisions,
    )


def rounding_slack(config: Config, dtype: torch.dtype) -> int:
    """The factor of `sync.tolerance` for rounding. A weight that did not arrive differs by 1e-2 nats and more."""
    if dtype == torch.float32:
        return 10 if config.cluster.gpus_per_engine else 1  # kernels of GPUs round some products to TF32
    return 500  # a logit near 16 is rounded by 0.06, differently on each side
