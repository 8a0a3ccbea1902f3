"""Processes that do units of work. One that fails or is killed is tried again, and holds nothing else up."""

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa

from data_prep import document, units
from data_prep.files import InputError, sentence_of
from data_prep.process_memory import keep_freed_memory, peak_resident_bytes
from data_prep.units import Unit

TRIES = 3
IDLE_BYTES = 2**20
"""With processes that have been started already, so many bytes in all are worth the way."""


@dataclass(frozen=True)
class Job:
    """A unit and the folder that it is to fill."""

    unit: Unit
    target: Path


@dataclass(frozen=True)
class Failure:
    """A unit that could not be done."""

    unit: Unit
    sentence: str
    trace: str = ""

    def __str__(self) -> str:
        return self.sentence


class UnitsFailed(InputError):
    """Units that could not be done, after all others were."""

    def __init__(self, stage: str, failures: Sequence[Failure]):
        self.failures = failures
        if len(failures) == 1:
            super().__init__(str(failures[0]))
        else:
            lines = "\n".join(f"  {failure}" for failure in failures)
            super().__init__(f"{stage}: {len(failures)} units failed, all others are done.\n{lines}")


def attempt(job: Job, workers: int = 1) -> tuple[bool, str, str] | None:
    """Do a unit; None where that went well, else whether to try again, a sentence, and the traceback."""
    document.READING.clear()
    try:
        units.perform(job.unit, job.target, workers)
        return None
    except InputError as error:
        return False, str(error), ""
    except Exception as error:
        known = isinstance(error, OSError) and error.strerror
        reason = " ".join((sentence_of(error) if known else f"{type(error).__name__}: {error}").split())
        place = document.READING.place or job.unit.name
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name} line {frame.lineno}"
        return True, f"{place}: {reason} ({where})", traceback.format_exc()


@dataclass
class Workers:
    """So many processes, which are started when they are worth it and stay until `close`.

    Args:
        count: 1 does all work in this process.
    """

    count: int
    peak: int = 0
    """The most memory that one of the processes has held so far, in bytes; this one counts where it does units itself."""
    _free: list["Worker"] = field(default_factory=list)

    def run(
        self,
        jobs: Sequence[Job],
        finished: Callable[[Job, float], None],
        least_bytes: int = IDLE_BYTES,
        threaded: bool = False,
    ) -> list[Failure]:
        """Do all units, in any order; returns those that failed, in theirs.

        Args:
            finished: Called for each that went well, with the seconds that it took.
            least_bytes: Units that read fewer in all are not worth the start of processes.
            threaded: As of `Phase`.
        """
        wide = [job for job in jobs if job.unit.wide]
        narrow = [job for job in jobs if not job.unit.wide]
        failures = list(self._here(wide, finished))
        least = min(least_bytes, IDLE_BYTES) if self._free and not threaded else least_bytes
        alone = self.count == 1 or len(narrow) < 2 or sum(job.unit.bytes for job in narrow) < least
        failures += self._here(narrow, finished) if alone else self._there(narrow, finished)
        order = {id(job.unit): number for number, job in enumerate(jobs)}
        return sorted(failures, key=lambda failure: order[id(failure.unit)])

    def _here(self, jobs: Sequence[Job], finished: Callable[[Job, float], None]) -> Iterator[Failure]:
        for job in jobs:
            for number in range(1, TRIES + 1):
                began = time.perf_counter()
                problem = attempt(job, self.count)
                self.peak = max(self.peak, peak_resident_bytes())
                if problem is None:
                    finished(job, time.perf_counter() - began)
                    break
                again, sentence, trace = problem
                if not again or number == TRIES:
                    yield Failure(job.unit, tried(sentence, number), trace)
                    break

    def _there(self, jobs: Sequence[Job], finished: Callable[[Job, float], None]) -> list[Failure]:
        # What is large first: a long one at the end would leave the others idle.
        waiting = deque(sorted(jobs, key=lambda job: -job.unit.bytes))
        tries = dict.fromkeys(map(id, jobs), 0)
        busy: dict[Worker, tuple[Job, float]] = {}
        failures: list[Failure] = []
        try:
            while waiting or busy:
                while waiting and len(busy) < self.count:
                    worker = self._free.pop() if self._free else Worker(max(1, cores() // self.count))
                    job = waiting.popleft()
                    if worker.send(job):
                        busy[worker] = job, time.perf_counter()
                    else:
                        waiting.appendleft(job)
                ready = wait([sign for worker in busy for sign in (worker.pipe, worker.process.sentinel)])
                for worker in [worker for worker in busy if {worker.pipe, worker.process.sentinel} & set(ready)]:
                    if worker.started():
                        continue
                    job, began = busy.pop(worker)
                    alive, problem, peak = worker.receive()
                    self.peak = max(self.peak, peak)
                    if alive:
                        self._free.append(worker)
                    if problem is None:
                        finished(job, time.perf_counter() - began)
                        continue
                    again, sentence, trace = problem
                    tries[id(job)] += 1
                    if again and tries[id(job)] < TRIES:
                        waiting.append(job)
                    else:
                        if not alive:
                            sentence = f"{job.unit.name}: {sentence}"
                        failures.append(Failure(job.unit, tried(sentence, tries[id(job)]), trace))
        finally:
            for worker in busy:  # Left by an exception, such as Ctrl-C.
                worker.kill()
        return failures

    def close(self) -> None:
        for worker in self._free:
            worker.process.kill()  # It waits, and has nothing to lose; to end by itself takes it a fifth of a second.
        for worker in self._free:
            worker.process.join()
        self._free.clear()


def tried(sentence: str, times: int) -> str:
    return sentence if times == 1 else f"{sentence} (tried {times} times)"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """So many workers, 0 for one a core that this process may use. It does units itself too."""
    keep_freed_memory()  # One batch after another is in the memory of those before.
    pool = Workers(count or cores())
    try:
        yield pool
    finally:
        pool.close()


class Worker:
    """One process at the other end of a pipe."""

    def __init__(self, threads: int) -> None:
        # Spawned, not forked: the parent has threads of Arrow and of the tokenizers, which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(there, os.getpid(), threads), daemon=False)
        self.process.start()
        self.ready = False
        there.close()

    def started(self) -> bool:
        """Whether what it has to say is that it is there. Raises InputError where it ended by itself before."""
        if self.ready:
            return False
        try:
            self.ready = bool(self.pipe.recv())
        except (EOFError, OSError):
            self.process.join()
            if (self.process.exitcode or 0) < 0:  # Killed, as it may be at any time.
                return False
            raise InputError(
                f"A process could not be started: it ended with status {self.process.exitcode} before it did anything. What it said "
                "stands above; `workers: 1` does without processes."
            ) from None
        return True

    def send(self, job: Job) -> bool:
        try:
            self.pipe.send(job)
            return True
        except OSError:
            self.kill()
            return False

    def receive(self) -> tuple[bool, tuple[bool, str, str] | None, int]:
        """Whether the process lives, what `attempt` gave back, and the most memory that the process has held."""
        try:
            return True, *self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            reason = f"was killed (signal {-code})" if code < 0 else f"ended with status {code}"
            cause = ", most likely for want of memory: give fewer `workers`" if code == -signal.SIGKILL else ""
            return False, (True, f"a process that worked on it {reason}{cause}", ""), 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def prepare_process(threads: int = 1) -> None:
    """What a process that works for another one does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer.
    keep_freed_memory()
    pa.set_cpu_count(threads)
    with suppress(OSError):
        pa.set_io_thread_count(1)


def serve(pipe: Connection, parent: int, threads: int) -> None:
    """Do what comes through the pipe, until it ends, in this process and so many threads of the libraries that have some."""
    # Read when such a library is imported, which is when a unit asks for it.
    for name in ("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    prepare_process(threads)
    pipe.send(True)
    while os.getppid() == parent:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        with suppress(BrokenPipeError):  # The parent is gone; what was done stays.
            pipe.send((attempt(job), peak_resident_bytes()))
