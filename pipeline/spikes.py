"""When the loss or the gradient of a step is a spike, and which steps are left out for that: arithmetic on the figures of past steps."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from data_prep.files import read_json

FILE = "left-out.json"
"""In the run directory: the ranges of steps that the run passes over, also where it goes on from a checkpoint that is older than
that decision."""
MAD_TO_DEVIATION = 1.4826
"""Times the median absolute deviation: the standard deviation of normally distributed values."""


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """What to do about a step whose loss or gradient is not finite or far from what is usual, before it changes the weights."""

    policy: Literal["off", "skip", "roll_back", "stop"] = "stop"
    """off: nothing. skip: leave the step out. roll_back: go back to an older checkpoint and leave a range of steps out. stop: save
    the state before the step and end the run, for a person to look."""
    loss_deviations: float | None = None
    """A loss so many standard deviations (from the median absolute deviation) above the median is a spike; when not given, only one
    that is not finite."""
    norm_times: float | None = None
    """A gradient norm of so many times the median is a spike; when not given, only one that is not finite."""
    window: int = 128
    """Steps to which a step is compared."""
    warmup_steps: int = 100
    """Before so many steps there is nothing usual yet, and only what is not finite is a spike."""
    skips_in_a_row: int = 5
    """After so many steps left out by skip, one after the other, the run stops: it does not come back by itself."""
    back_steps: int = 100
    """Of roll_back: go on from a checkpoint at least so many steps before the spike (Chowdhery et al. 2022, section 5.1)."""
    skip_steps: int = 200
    """Of roll_back: how many steps are left out, from back_steps before the spike on."""
    rollbacks: int = 5
    """After so many the run stops."""

    def __post_init__(self) -> None:
        for name in ("loss_deviations", "norm_times"):
            value = getattr(self, name)
            if value is not None and value <= 1:
                raise ValueError(f"spikes.{name} is {value}: it must be above 1, or null")
        for name in ("window", "warmup_steps", "skips_in_a_row", "back_steps", "rollbacks"):
            if getattr(self, name) < 1:
                raise ValueError(f"spikes.{name} is {getattr(self, name)}: it must be at least 1")
        if self.skip_steps < self.back_steps + 1:
            raise ValueError(
                f"spikes.skip_steps is {self.skip_steps}: it must be more than spikes.back_steps {self.back_steps}, "
                "or the spike itself is not left out"
            )

    def range_around(self, step: int) -> tuple[int, int]:
        """The first and the last step that roll_back leaves out for a spike at `step`."""
        first = max(1, step - self.back_steps)
        return first, first + self.skip_steps - 1


class Usual:
    """The losses and gradient norms of the last steps, and what of a new step lies outside of them."""

    def __init__(self, settings: Spikes):
        self.settings = settings
        self.losses: deque[float] = deque(maxlen=settings.window)
        self.norms: deque[float] = deque(maxlen=settings.window)

    def add(self, loss: float, norm: float) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def strange(self, step: int, loss: float, norm: float) -> list[dict[str, Any]]:
        """What is wrong with a step: the figure, its value, and the most that it might have been; nothing for a usual step."""
        limits = self.limits(step)
        return [
            {"figure": name, "value": value, "limit": None if math.isinf(limits[name]) else limits[name]}
            for name, value in (("loss", loss), ("gradient norm", norm))
            if not math.isfinite(value) or value > limits[name]
        ]

    def limits(self, step: int) -> dict[str, float]:
        """The most that loss and gradient norm of a step may be; infinite where all that is finite may pass."""
        settings, limits = self.settings, {"loss": math.inf, "gradient norm": math.inf}
        # After a continuation without figures of the past there is nothing usual, either.
        if step <= settings.warmup_steps or len(self.losses) < min(settings.window, settings.warmup_steps):
            return limits
        if settings.loss_deviations is not None:
            middle = median(self.losses)
            deviation = MAD_TO_DEVIATION * median(abs(loss - middle) for loss in self.losses)
            limits["loss"] = middle + settings.loss_deviations * deviation
        if settings.norm_times is not None:
            limits["gradient norm"] = settings.norm_times * median(self.norms)
        return limits

    def state_dict(self) -> dict[str, list[float]]:
        return {"losses": [*self.losses], "norms": [*self.norms]}

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        for name in ("losses", "norms"):
            values = getattr(self, name)
            values.clear()
            values.extend(state_dict[name])


class StepRanges:
    """A set of steps, as ranges of the first and the last, in their order and apart from one another."""

    def __init__(self, ranges: Iterable[Iterable[int]] = ()):
        self.ranges: list[tuple[int, int]] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self.ranges, (first, last)]):
            if merged and start <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self.ranges = merged

    def __contains__(self, step: int) -> bool:
        place = bisect_right(self.ranges, (step, math.inf))
        return place > 0 and step <= self.ranges[place - 1][1]

    def up_to(self, step: int) -> "StepRanges":
        return StepRanges((first, min(last, step)) for first, last in self.ranges if first <= step)

    def as_lists(self) -> list[list[int]]:
        return [[first, last] for first, last in self.ranges]


def decisions(run: Path) -> dict[str, Any]:
    """What stands in a run's left-out.json: `ranges` of steps that it passes over wherever it goes on from, and `rollbacks`, how
    often it went back; `back_to`, the checkpoint, where that was not finished."""
    path = run / FILE
    return read_json(path) if path.exists() else {"ranges": [], "rollbacks": 0}
