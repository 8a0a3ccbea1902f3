"""Reading in several processes: what comes out, and its order, do not depend on how many there are."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, islice

import pyarrow as pa

from data_prep.files import InputError
from data_prep.workers import prepare_process

# Processes take about a second to start, so a source of so few tasks is read without them.
FEW_TASKS = 8
TASKS_PER_WORKER = 2


@dataclass(frozen=True)
class Piece:
    """Some rows of a source as columns `id`, `text` and, of pairs, `target`, and what was counted while reading them."""

    batch: pa.RecordBatch | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Some of a source's work. What it reads has to fit in memory, unless it is `local` to the main process."""

    call: Callable[[], Iterable[Piece]]
    local: bool = False


def in_order(tasks: Iterable[Task], workers: int) -> Iterator[Piece]:
    """The pieces of all tasks in the order of the tasks; no more than a few tasks a worker are in memory.

    An error is raised where its task has its turn, so that the first one in the input is the one that is named.
    """
    tasks = errors_in_turn(tasks)
    first = list(islice(tasks, FEW_TASKS)) if workers > 1 else []
    if len(first) < FEW_TASKS:
        for task in chain(first, tasks):
            yield from task.call()
        return
    # Spawned, not forked: the parent has threads of Arrow and of the tokenizers, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=prepare_process)
    try:
        waiting: deque[Future[list[Piece]] | Task] = deque()
        for task in chain(first, tasks):
            waiting.append(task if task.local else pool.submit(perform, task.call))
            if len(waiting) > TASKS_PER_WORKER * workers:
                yield from outcome(waiting.popleft())
        while waiting:
            yield from outcome(waiting.popleft())
    except BrokenProcessPool:
        raise InputError(
            f"One of {workers} processes that read was killed, most likely for want of memory: give fewer `workers`."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def errors_in_turn(tasks: Iterable[Task]) -> Iterator[Task]:
    """The tasks; an error in making one becomes a last task that raises it."""
    try:
        yield from tasks
    except Exception as error:
        yield Task(Raise(error), local=True)


@dataclass(frozen=True)
class Raise:
    error: Exception

    def __call__(self) -> Iterable[Piece]:
        raise self.error


def outcome(waiting: "Future[list[Piece]] | Task") -> Iterable[Piece]:
    return waiting.call() if isinstance(waiting, Task) else waiting.result()


def perform(call: Callable[[], Iterable[Piece]]) -> list[Piece]:
    return list(call())
