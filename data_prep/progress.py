"""How far a stage is: units, bytes, rate and the time that is left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.status import Status

LINE_SECONDS = 10.0
"""Where nobody watches, as in the log of a job, a line is written so often at most."""
SPINNER_SECONDS = 0.5


@dataclass
class Progress:
    """Counts what is done of one phase.

    Args:
        units, bytes: of the whole phase.
        found: units that were finished before.
        done: bytes of these.
    """

    name: str
    units: int
    bytes: int
    found: int
    done: int
    console: Console
    status: Status

    def __post_init__(self) -> None:
        self.started = self.shown = time.monotonic()
        self.finished = self.found
        self.first = self.done

    def add(self, size: int) -> None:
        self.finished += 1
        self.done += size
        now = time.monotonic()
        if now - self.shown >= (SPINNER_SECONDS if self.console.is_terminal else LINE_SECONDS):
            self.shown = now
            line = describe(self, now - self.started)
            if self.console.is_terminal:
                self.status.update(line)
            else:
                self.console.print(line, highlight=False)


def describe(progress: Progress, seconds: float) -> str:
    """One line: how much is done, how fast, and how long the rest takes at that rate."""
    rate = (progress.done - progress.first) / max(seconds, 1e-9)
    parts = [f"{progress.name}: {progress.finished} of {progress.units} units"]
    if progress.bytes:
        parts.append(f"{progress.done / 1e6:,.0f} of {progress.bytes / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s")
    if rate:
        parts.append(f"{duration((progress.bytes - progress.done) / rate)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


@contextmanager
def progress(name: str, sizes: list[int], missing: list[int], console: Console) -> Iterator[Progress]:
    """Show how a phase gets on, given the bytes of all its units and of those that are still to be done."""
    with console.status(f"{name} ...") as status:
        found = len(sizes) - len(missing)
        yield Progress(name, len(sizes), sum(sizes), found, sum(sizes) - sum(missing), console, status)
