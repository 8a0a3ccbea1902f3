"""Sides by turns: what was measured, beside what, and how."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison. Rates are megabytes of text a second; None where the other side is not there."""

    measure: str
    corpus: str
    what: str
    beside: str
    rate: float | None
    peer_rate: float | None
    least: float | None = None
    """The ratio that is wanted."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.rate / self.peer_rate if self.rate and self.peer_rate else None

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None or self.least is None else self.ratio >= self.least

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def fastest(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The least seconds of each work, which says how many it took; all of them by turns."""
    seconds = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name] = min(seconds[name], work())
    return seconds


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds that it takes; by `time.process_time` those of the processor, to which other work adds little."""
    began = clock()
    work()
    return clock() - began


def in_a_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own, which has neither memory at hand nor words seen."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def on_one_core(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own that is held to one core, so that no side has more threads than the other."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=keep_to_one_core) as pool:
        return pool.submit(work, *arguments).result()


def keep_to_one_core() -> None:
    # Before any library counts the cores and starts its threads.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
