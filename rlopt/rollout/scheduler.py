"""vLLM's scheduler, which here hands a response over once, when it is complete, with its log-probabilities as one array.

vLLM sends every token on to the process that asked, with its log-probability in three arrays of one number each, and
appends it there to lists. For a small model on a CPU that takes as long as the model, and on a GPU as well: one core is
busy with it. Nobody here reads a response before its end, so tokens wait in the scheduler.

Tokens do not wait across a change of weights: vLLM marks what it hands over with the version of that moment. A pause
that keeps requests therefore ends only when everything that was sampled before it is handed over.

The log-probabilities travel in the field `routed_experts`, the one array per token that vLLM passes on as it is.
Mixture-of-experts models use it only where `enable_return_routed_experts` is set, which rlopt never does.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus


class _Waiting:
    """The tokens of a request that are not handed over yet, and their log-probabilities."""

    __slots__ = ("logprobs", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []

    def into(self, output: EngineCoreOutput) -> EngineCoreOutput:
        output.new_token_ids = self.token_ids
        if self.logprobs:
            output.routed_experts = np.array(self.logprobs, np.float32)
        return output


class _CompleteResponses(Scheduler):
    """A base that keeps tokens until their request ends, or until a pause under which weights may change."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting_tokens: dict[str, _Waiting] = {}

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        logprobs = model_runner_output.logprobs
        if logprobs is not None:
            model_runner_output.logprobs = None  # else they are cut into three arrays for each token
        batches: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        values = None if logprobs is None else logprobs.logprobs[:, 0].tolist()
        for client, batch in list(batches.items()):
            batch.outputs = self._complete(batch.outputs, logprobs, values, model_runner_output.req_id_to_index)
            if not batch.outputs and batch.finished_requests is None and batch.scheduler_stats is None:
                del batches[client]
        if self._must_hand_over():
            self._hand_over(batches)
        return batches

    def _complete(
        self, outputs: list[EngineCoreOutput], logprobs: LogprobsLists | None, values: list[float] | None, rows: dict[str, int]
    ) -> list[EngineCoreOutput]:
        """Add the tokens of this step to those that wait; return the outputs of requests that have ended."""
        waiting, ended = self._waiting_tokens, []
        for output in outputs:
            name, tokens = output.request_id, output.new_token_ids
            if (kept := waiting.get(name)) is None:
                kept = waiting[name] = _Waiting()
            kept.token_ids += tokens
            if values is not None and tokens:
                first = rows[name]
                if logprobs is not None and logprobs.cu_num_generated_tokens is not None:
                    first = logprobs.cu_num_generated_tokens[first]
                kept.logprobs += values[first : first + len(tokens)]
            if output.finish_reason is not None or output.new_prompt_logprobs_tensors is not None:
                ended.append(waiting.pop(name).into(output))
        return ended

    def _must_hand_over(self) -> bool:
        return bool(self._waiting_tokens) and self.pause_state == PauseState.PAUSED_ALL

    def _hand_over(self, batches: dict[int, EngineCoreOutputs]) -> None:
        for name, kept in self._waiting_tokens.items():
            batch = batches.setdefault(self.requests[name].client_index, EngineCoreOutputs(outputs=[]))
            batch.outputs.append(kept.into(EngineCoreOutput(name, [])))
        self._waiting_tokens = {}

    def has_finished_requests(self) -> bool:
        """True also while tokens have to be handed over: the engine makes a step without the model, and then pauses."""
        return self._must_hand_over() or super().has_finished_requests()

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """Drop the tokens of requests that are aborted: they are sampled anew."""
        ended: list[Request] = super().finish_requests(request_ids, finished_status)
        for request in ended:
            self._waiting_tokens.pop(request.request_id, None)
        return ended


class _AsyncCompleteResponses(_CompleteResponses, AsyncScheduler):
    """The same where vLLM schedules a step while the one before it still runs."""


def make_scheduler(vllm_config: Any, **kwargs: Any) -> Scheduler:
    """What vLLM makes by the name of `scheduler_cls`: the kind that its config decided on."""
    kind = _AsyncCompleteResponses if vllm_config.scheduler_config.async_scheduling else _CompleteResponses
    return kind(vllm_config=vllm_config, **kwargs)
