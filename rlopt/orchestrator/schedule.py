"""Which weights sample which batch: `interval` and `offset` made exact. Pure integer arithmetic.

Batch `b` (1-based) is trained on at step `b`. With interval `m` and offset `n` it is sampled with version

    version(b) = 0 if b <= n else m * floor((b - n - 1) / m)          lag(b) = b - 1 - version(b)

(1, 0) is on-policy, (20, 0) a sampler frozen for 20 updates, (1, k) a pipeline k steps deep. Source: the schedule of
Trinity-RFT's explorer and trainer, which arXiv:2509.24203 trains with.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    interval: int
    offset: int

    def version(self, batch: int) -> int:
        """The number of learner steps in the weights that sample `batch`."""
        return self.interval * max(0, (batch - self.offset - 1) // self.interval)

    def lag(self, batch: int) -> int:
        """Learner updates made between the sampling of `batch` and its own step."""
        return batch - 1 - self.version(batch)

    def last_batch(self, version: int) -> int:
        """The last batch that `version` samples: sampling waits there for the next synchronization."""
        return version + self.offset + self.interval

    def syncs_after(self, step: int) -> bool:
        """Whether the weights of learner step `step` go to the samplers."""
        return step % self.interval == 0

    @property
    def worst_lag(self) -> int:
        return self.offset + self.interval - 1
