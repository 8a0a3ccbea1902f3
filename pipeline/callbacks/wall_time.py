"""Will the next step, and a save after it, still end before the time of the job is up?"""

import os
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime

from lightning import Trainer

from pipeline.task import LanguageModelling

RECENT_STEPS = 20
"""The next step is expected to take as long as the longest of so many."""
SLOW_DISK_BYTES_PER_SECOND = 200e6
"""How fast a rank is expected to write its part of the first checkpoint, before one was seen."""
BYTES_PER_PARAMETER = 16
"""In a checkpoint: the weight, Adam's two moments and a moving average, in fp32."""


@dataclass(frozen=True, kw_only=True)
class WallTime:
    """Stopping in time, with everything saved, whether or not a signal comes before the time of a job is up."""

    forecast: bool = True
    """Stop when the time left is shorter than a step and a save are expected to take. The end is that of the Slurm job (its time
    limit may be changed while it runs), or what the next two say, whichever comes first."""
    limit_seconds: float | None = None
    """This long after the process began."""
    ends_at: str | None = None
    """At this local time, such as 2030-01-31T18:00."""
    reserve_seconds: float = 30.0
    """Time that is kept free besides, for the end of the process and for clocks that differ."""

    def __post_init__(self):
        if self.limit_seconds is not None and self.limit_seconds <= 0:
            raise ValueError(f"wall_time.limit_seconds is {self.limit_seconds}: it must be positive, or null")
        if self.reserve_seconds < 0:
            raise ValueError(f"wall_time.reserve_seconds is {self.reserve_seconds}: it must not be negative")
        if self.ends_at is not None:
            self.parsed_end(self.ends_at)

    @staticmethod
    def parsed_end(text: str) -> float:
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise ValueError(
                f"wall_time.ends_at is {text}: it must be a time such as 2030-01-31T18:00, or null"
            ) from None

    def end(self, began: float) -> float | None:
        """When the time is up, in seconds since the epoch, for a process that began then; None: never."""
        ends = [self.parsed_end(self.ends_at)] if self.ends_at else []
        if self.limit_seconds is not None:
            ends.append(began + self.limit_seconds)
        job = os.environ.get("SLURM_JOB_ID")
        slurm = end_of_job(job) if job else None
        if slurm is not None:
            ends.append(slurm)
        return min(ends, default=None) if self.forecast else None


def end_of_job(job: str) -> float | None:
    """When Slurm will end a job, as it is known now (Slurm is asked, since a limit may be changed), else at its start."""
    try:
        command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()
        return datetime.fromisoformat(answer[0]).timestamp()
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        at_start = os.environ.get("SLURM_JOB_END_TIME", "")
        return float(at_start) if at_start.isdigit() else None


class Forecast:
    """What the first rank's clock says of the time left; other ranks may ask, and hear that there is enough."""

    def __init__(self, settings: WallTime, began: float):
        self.settings, self.began = settings, began
        self.end: float | None = None
        self.steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self.validation = 0.0
        self.mark = time.monotonic()

    def begin(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.end = self.settings.end(self.began) if trainer.is_global_zero else None
        parameters = pl_module.outline.parameter_counts()["total"]
        self.first_save = parameters * BYTES_PER_PARAMETER / trainer.world_size / SLOW_DISK_BYTES_PER_SECOND
        self.lap()

    def lap(self) -> float:
        """Seconds since the lap before."""
        now = time.monotonic()
        before, self.mark = self.mark, now
        return now - before

    def save_seconds(self, trainer: Trainer) -> float:
        return trainer.strategy.longest_write or self.first_save  # pyright: ignore[reportAttributeAccessIssue]

    def falls_short(self, trainer: Trainer, work: float) -> bool:
        """Whether so many seconds of work, a save and the reserve no longer fit."""
        if self.end is None:
            return False
        need = work + self.save_seconds(trainer) + self.settings.reserve_seconds
        if time.time() + need < self.end:
            return False
        # Somebody may have given the job more time.
        self.end = self.settings.end(self.began)
        return self.end is not None and time.time() + need >= self.end

    @property
    def next_step(self) -> float:
        return max(self.steps, default=0.0)

    def describe(self, trainer: Trainer) -> str:
        """For people: why it is time to stop."""
        if self.end is None:
            return "the end of the wall time"
        left, save = self.end - time.time(), self.save_seconds(trainer)
        return (
            f"the end of the wall time: {left:.1f} s are left, and a step takes up to {self.next_step:.1f} s, a save {save:.1f} s, "
            f"the end of the process {self.settings.reserve_seconds:g} s"
        )
