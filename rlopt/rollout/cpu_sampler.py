"""vLLM's sampler on CPUs without its work per token in Python: the same tokens and log-probabilities, to the last bit.

Two things are done otherwise. vLLM asks the generator of every sample for one number at every token; here a generator is
asked for many at once, which are the same numbers, since it makes them one after the other. And the sampled token's
log-probability is taken alone; vLLM also sorts out the likeliest tokens and counts the rank, which nobody reads here.
"""

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from rlopt.rollout.seed_blocks import SEED_RANGE, SeedBlocks
from rlopt.weight_sync.shm_receiver import Receipts


class CpuSampler(Sampler):
    """vLLM's sampler for `logprobs_mode="processed_logprobs"` and requests that ask for the sampled token's value alone."""

    def __init__(self) -> None:
        super().__init__(logprobs_mode="processed_logprobs")
        self._seeds = SeedBlocks()
        self.topk_topp_sampler.forward = self._draw

    def _draw(
        self, logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sampled tokens [rows], and log-probabilities [rows, vocabulary]. Source: vLLM's `TopKTopPSampler.forward_cpu`."""
        logits = apply_top_k_top_p(logits, k, p)
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        every = len(generators) == len(logits)  # each row has a seed of its own
        seeds = [0] * len(logits) if every else torch.randint(0, SEED_RANGE, (len(logits),)).tolist()
        for row, generator in generators.items():
            seeds[row] = self._seeds.next(generator)
        return torch.ops._C.fused_gumbel_argmax(logits.float(), torch.tensor(seeds)), logprobs

    @staticmethod
    def gather_logprobs(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> LogprobsTensors:
        """Of each row's token alone; vLLM's own where more is asked for."""
        if num_logprobs:
            return Sampler.gather_logprobs(logprobs, num_logprobs, token_ids)
        rows = token_ids.unsqueeze(-1)
        return LogprobsTensors(rows.int(), logprobs.gather(-1, rows), torch.zeros_like(token_ids))


class CpuWorker(Receipts):
    """Methods that are added to vLLM's worker on a CPU."""

    def use_cpu_sampler(self) -> None:
        """Replace vLLM's sampler."""
        self.model_runner.sampler = CpuSampler()  # type: ignore[attr-defined]
