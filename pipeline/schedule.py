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
class Warmup(Schedule):
    """Linear warm-up from 0 to the peak, and then what the subclass says."""

    warmup_tokens: int = 0
    """Tokens over which the learning rate grows from 0 to its peak."""

    def __post_init__(self):
        if self.warmup_tokens < 0:
            raise ValueError(f"warmup_tokens is {self.warmup_tokens}: it must not be negative")

    def multiplier(self, tokens: int, total_tokens: int) -> float:
        if tokens < self.warmup_tokens:
            return tokens / self.warmup_tokens
        return self.after_warmup(tokens, total_tokens)

    @abstractmethod
    def after_warmup(self, tokens: int, total_tokens: int) -> float:
        """As `multiplier`, from the end of the warm-up on."""


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule(Warmup):
    """The peak after the warm-up."""

    def after_warmup(self, tokens: int, total_tokens: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class InverseSquareRootSchedule(Warmup):
    """Falls with the square root of the tokens, from the peak at the warm-up's end (Vaswani et al. 2017, equation 3)."""

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_tokens == 0:
            raise ValueError("warmup_tokens is 0: the square root is measured from the warm-up's end, so give some")

    def after_warmup(self, tokens: int, total_tokens: int) -> float:
        return math.sqrt(self.warmup_tokens / tokens)


@dataclass(frozen=True, kw_only=True)
class Decay(Warmup):
    """A fall to a fraction of the peak, which is then held; the subclass gives its shape."""

    decay_tokens: int | None = None
    """Tokens, warm-up included, after which the rate is held; the run's total when not given."""
    final_fraction: float = 0.1
    """The rate that is held, as a fraction of the peak."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction is {self.final_fraction}: it must lie in [0, 1]")
        if self.decay_tokens is not None and self.decay_tokens < self.warmup_tokens:
            raise ValueError(
                f"decay_tokens is {self.decay_tokens}, less than the warmup_tokens {self.warmup_tokens} that it includes: raise it"
            )

    def after_warmup(self, tokens: int, total_tokens: int) -> float:
        end = self.decay_tokens or total_tokens
        if tokens >= end:
            return self.final_fraction
        progress = (tokens - self.warmup_tokens) / (end - self.warmup_tokens)
        return self.final_fraction + (1 - self.final_fraction) * self.left(progress)

    @abstractmethod
    def left(self, progress: float) -> float:
        """The part of the fall that is still to come, from 1 at progress 0 to 0 at progress 1."""


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(Decay):
    """Linear warm-up, then cosine decay to a fraction of the peak, then held there (Brown et al. 2020, appendix B)."""

    def left(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class LinearSchedule(Decay):
    """Linear warm-up, then a straight line to a fraction of the peak, then held there."""

    def left(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True, kw_only=True)
class WSDSchedule(LinearSchedule):
    """Warm-up, stable, decay (Hu et al. 2024, section 4): the peak for most of the run, then a straight line down."""

    cooldown_fraction: float = 0.2
    """Share of the tokens after the warm-up in which the rate falls."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.cooldown_fraction <= 1:
            raise ValueError(f"cooldown_fraction is {self.cooldown_fraction}: it must lie in (0, 1]")

    def left(self, progress: float) -> float:
        return min(1.0, (1 - progress) / self.cooldown_fraction)


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
