"""Learning rates as pure functions of the tokens seen, so that a resumed run needs no scheduler's state."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Linear warm-up, then cosine decay to a fraction of the peak, then held there (Brown et al. 2020, appendix B)."""

    warmup_tokens: int = 0
    """Tokens over which the learning rate grows from 0 to its peak."""
    decay_tokens: int | None = None
    """Tokens, warm-up included, after which the rate is held; the run's total when not given."""
    final_fraction: float = 0.1
    """The rate that is held, as a fraction of the peak."""

    def __post_init__(self):
        if self.warmup_tokens < 0:
            raise ValueError(f"warmup_tokens is {self.warmup_tokens}: it must not be negative")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction is {self.final_fraction}: it must lie in [0, 1]")

    def multiplier(self, tokens: int, total_tokens: int) -> float:
        """Learning rate after `tokens` tokens of a run of `total_tokens`, as a fraction of the peak."""
        end = self.decay_tokens or total_tokens
        if tokens < self.warmup_tokens:
            return tokens / self.warmup_tokens
        if tokens >= end:
            return self.final_fraction
        progress = (tokens - self.warmup_tokens) / (end - self.warmup_tokens)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
