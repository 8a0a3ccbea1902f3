"""What a job does when it has its place on the cluster. Queued again, it goes on from what is finished."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from submitit.helpers import DelayedSubmission

from data_prep.configuration import DataConfig
from data_prep.files import InputError, sentence_of
from data_prep.run import run
from data_prep.slurm import queue
from data_prep.slurm.frontier import Share, advance, do_share
from data_prep.slurm.record import Record
from data_prep.workers import UnitsFailed

MOST_FRUITLESS = 3
"""A job that has run out of time so often in a row, without a unit finished, is not queued again."""
THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


@dataclass
class Task:
    """The work of one job.

    Args:
        share: Of an array's job: which units.
        final: Do all that is left, whoever should have done it.
        fruitless: How often it has run out of time without finishing anything.
    """

    config: DataConfig
    last: str
    share: Share | None = None
    final: bool = False
    fruitless: int = 0
    finished: int = 0

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, end)
        record = Record(Path(self.config.output))
        try:
            failed = self.work(Console(soft_wrap=True))
        except UnitsFailed as error:
            failed = [str(failure) for failure in error.failures]
        except (InputError, OSError) as error:
            failed = [sentence_of(error)]
        record.fail(own_job(), failed)
        for sentence in failed:
            print(f"error: {sentence}", file=sys.stderr)
        if failed:
            sys.exit(2)

    def work(self, console: Console) -> list[str]:
        """Returns a sentence for each unit, or stage, that failed."""
        processes = self.config.slurm.cpus_per_task
        # Where Slurm does not confine a job to its cores, libraries would start a thread for each core of the node.
        for name in THREADS:
            os.environ.setdefault(name, "1" if self.share else str(processes))
        if self.share:
            return do_share(self.config, self.last, self.share, processes, console, self.count)
        if self.final:
            run(replace(self.config, workers=processes), self.last, console)
            return []
        return advance(self.config, self.last, processes, console)

    def count(self) -> None:
        self.finished += 1

    def checkpoint(self) -> DelayedSubmission | None:
        """What to do when it is queued again, of which submitit asks when the time is over."""
        fruitless = 0 if self.finished else self.fruitless + 1
        return DelayedSubmission(replace(self, fruitless=fruitless, finished=0)) if fruitless < MOST_FRUITLESS else None


def own_job() -> str:
    """The number of the job that this process is of, as Slurm writes it: 12, or 12_3 of an array."""
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    if all(name in os.environ for name in names):
        return "_".join(os.environ[name] for name in names)
    return os.environ.get("SLURM_JOB_ID", str(os.getpid()))


def end(number: int, frame: Any) -> None:
    """End at once where Slurm says so. A preemption that leaves time has the job still running: it is queued again."""
    job = own_job()
    with suppress(InputError, ValueError):
        if queue.ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING":
            queue.ask("scontrol", "requeue", job)
    sys.exit(128 + number)
