"""The machine that was measured on, and what else it did meanwhile."""

import importlib.metadata
import os
import platform
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("gigatoken", "tokenizers", "rensa", "pyarrow", "polars", "numpy", "datatrove", "spacy")
BUSY = 0.25
"""Ratios suffer when others use more than this share of the processors."""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def versions() -> dict[str, str | None]:
    """The packages that decide on speeds; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def busy_seconds() -> float | None:
    """Processor seconds that this machine has worked since it started; None where it does not say."""
    try:
        numbers = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    idle, waiting = numbers[3:5]
    return (sum(numbers) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process and of those of its children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


@dataclass
class Machine:
    """Watches from its beginning on what others use."""

    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    """Of the last minute before it began."""

    def __post_init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), busy_seconds(), own_seconds()

    def others(self) -> float | None:
        """The share of the machine's processors that others have used since it began."""
        busy = busy_seconds()
        if busy is None or self._busy is None:
            return None
        seconds = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (busy - self._busy - (own_seconds() - self._own)) / seconds)

    def warning(self) -> str | None:
        """What to say before it begins, where others are at work."""
        if self.load <= BUSY * self.cores:
            return None
        return (
            f"the machine is busy (load {self.load:.1f} on {self.cores} cores): ratios are rougher than on an idle one"
        )

    def json(self) -> dict[str, Any]:
        return {
            "processor": processor(),
            "cores": self.cores,
            "load_before": self.load,
            "used_by_others": self.others(),
            "versions": versions(),
        }
