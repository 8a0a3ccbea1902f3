"""Following submitted jobs to their end: how far the units are, and what became of all of it."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from data_prep.configuration import DataConfig
from data_prep.files import InputError
from data_prep.progress import LINE_SECONDS, Progress, describe
from data_prep.run import run
from data_prep.slurm import queue
from data_prep.slurm.frontier import Front, survey
from data_prep.slurm.record import Record, Submitted

ASK_SECONDS = 2.0
"""Between questions to Slurm at first; later they are rarer."""
LONGEST_PAUSE = 15.0
PATIENCE = 20
"""So many questions in a row may find no answer: a controller that is started anew."""


@dataclass
class Watch:
    """Says how far the first phase is that is not whole, and says it only when it is due or news."""

    config: DataConfig
    last: str
    console: Console
    said: float = 0.0
    shown: Progress | None = None

    def look(self) -> None:
        now = time.monotonic()
        if self.said and now - self.said < LINE_SECONDS:
            return
        try:
            fronts = [front for front in survey(self.config, self.last) if front.units]
        except (OSError, InputError, KeyError):  # What is looked at is being replaced.
            return
        self.said = now
        if fronts:
            self.say(fronts, now)

    def say(self, fronts: Sequence[Front], now: float) -> None:
        name = fronts[0].verb if fronts[0].phase in fronts[0].stage else f"{fronts[0].verb}, {fronts[0].phase}"
        units, size = sum(front.units for front in fronts), sum(front.bytes for front in fronts)
        found, done = sum(front.found for front in fronts), sum(front.done for front in fronts)
        shown = self.shown
        if shown is None or (shown.name, shown.units, shown.bytes) != (name, units, size):
            shown = self.shown = Progress(name, units, size, found, done, self.console, self.console.status(name))
        shown.finished, shown.done = found, done
        self.console.print(describe(shown, now - shown.started), highlight=False, markup=False)


def follow_jobs(config: DataConfig, last: str, record: Record, console: Console) -> None:
    """Wait until no job is left and say what became of them.

    Raises:
        InputError: something failed; the message has what, with file and line.
    """
    jobs = record.read()
    watch, pause, silent = Watch(config, last, console), ASK_SECONDS, 0
    over: set[str] = set()
    states: dict[str, list[str]] = {}
    try:
        while True:
            try:
                # What Slurm forgets was over; what it last said of it stays.
                found, silent = queue.states([job.job for job in jobs], record.mark), 0
            except InputError:
                silent += 1
                if silent > PATIENCE:
                    raise
                time.sleep(pause)
                continue
            states |= found
            running = queue.waiting(found)
            for job in jobs:
                if job.job not in running and job.job not in over:
                    over.add(job.job)
                    how = in_words(states.get(job.job, []))
                    console.print(f"{job.name} (job {job.job}) is over: {how}", highlight=False, markup=False)
            if not running:
                break
            watch.look()
            time.sleep(pause)
            pause = min(pause * 1.1, LONGEST_PAUSE)
    except KeyboardInterrupt:
        console.print("The jobs go on; the same command follows them again.", highlight=False)
        raise
    conclude(config, last, record, jobs, states, console)


def in_words(states: Sequence[str]) -> str:
    """Slurm's states of the tasks of a job: `completed`, or `2 completed, 1 failed`."""
    counts = Counter(state.lower() for state in states)
    if len(counts) <= 1:
        return next(iter(counts), "nothing is known of it any more")
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def conclude(
    config: DataConfig,
    last: str,
    record: Record,
    jobs: Sequence[Submitted],
    states: dict[str, list[str]],
    console: Console,
) -> None:
    """Say what a run says at its end; raises InputError where it has none."""
    if failures := record.failures():
        raise InputError("\n".join([*failures[:1], *(f"       {each}" for each in failures[1:])]))
    if not survey(config, last):
        run(config, last, console)  # Which does nothing but report.
        return
    for job in jobs:
        if set(states.get(job.job, [])) - {"COMPLETED"}:
            raise InputError(
                f"{job.name} (job {job.job}) ended as {in_words(states[job.job])}: its logs are in {record.logs(job.name)}; "
                "the same command submits what is missing."
            )
    raise InputError(f"The jobs are over and not all is done: their logs are in {record.folder}; submit it again.")
