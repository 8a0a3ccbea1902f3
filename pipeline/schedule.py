"""Learning rates as pure functions of the tokens seen, so that a resumed run needs no scheduler's state."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """How the learning rate goes; one frozen dataclass a schedule."""

    @abstractmethod
    def multiplier(self, tokens: int, total_tokens: int) -> float:
        """Learning rate of the step that ends after `tokens` tokens of a run of `total_tokens`, as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(Schedule):
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
        end = self.decay_tokens or total_tokens
        if tokens < self.warmup_tokens:
            return tokens / self.warmup_tokens
        if tokens >= end:
            return self.final_fraction
        progress = (tokens - self.warmup_tokens) / (end - self.warmup_tokens)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class StepSchedule(Schedule):
    """Constant at first, then multiplied by a factor at the start of each further period (Zaremba et al. 2014, section 4.1)."""

    periods: int
    """Equal parts of the run; with as many as there are epochs, the rate falls at the start of an epoch."""
    hold: int
    """Periods at the peak."""
    factor: float = 0.5
    """What the rate is multiplied by at the start of each period after those."""

    def __post_init__(self):
        if not 1 <= self.hold <= self.periods:
            raise ValueError(f"hold is {self.hold} of {self.periods} periods: it must lie between 1 and all of them")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor is {self.factor}: it must lie in (0, 1]")

    def multiplier(self, tokens: int, total_tokens: int) -> float:
        # In whole numbers, and rounded up: the step that ends a period still belongs to it.
        period = -(-tokens * self.periods // total_tokens)
        return self.factor ** max(0, period - self.hold)
