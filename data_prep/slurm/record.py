"""What is kept of a corpus's jobs, in the folder `slurm` of its output: their numbers, and what failed in them."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.files import InputError, read_json, write_json
from data_prep.slurm import queue

FOLDER = "slurm"
JOBS, FAILED = "jobs.json", "failed"


@dataclass(frozen=True)
class Submitted:
    """A job, or an array of them, as Slurm has it."""

    name: str
    """Also that of its folder of logs."""
    does: str
    job: str
    tasks: int
    after: str | None
    """The job that has to succeed before this one."""


@dataclass(frozen=True)
class Record:
    """The jobs that were submitted last for an output folder."""

    output: Path

    @property
    def folder(self) -> Path:
        return self.output / FOLDER

    @property
    def mark(self) -> str:
        """The comment of all its jobs."""
        return f"data_prep {self.output.absolute()}"

    def write(self, jobs: Sequence[Submitted]) -> None:
        write_json(self.folder / JOBS, [asdict(job) for job in jobs])

    def read(self) -> list[Submitted]:
        path = self.folder / JOBS
        return [Submitted(**job) for job in read_json(path)] if path.is_file() else []

    def logs(self, name: str) -> Path:
        return self.folder / name

    # -- what failed

    def fail(self, job: str, sentences: Sequence[str]) -> None:
        """Keep what failed in a job; nothing, where nothing did this time."""
        path = self.folder / FAILED / f"{job}.json"
        if sentences:
            write_json(path, list(sentences))
        else:
            path.unlink(missing_ok=True)

    def failures(self) -> list[str]:
        """A sentence for each unit that failed in the jobs that were submitted last."""
        paths = sorted((self.folder / FAILED).glob("*.json"))
        return list(dict.fromkeys(sentence for path in paths for sentence in read_json(path)))

    def forget_failures(self) -> None:
        for path in (self.folder / FAILED).glob("*.json"):
            path.unlink(missing_ok=True)


def jobs_in_queue(record: Record) -> list[str]:
    """The numbers of this output's jobs that wait or run. Raises InputError where Slurm cannot be asked."""
    return queue.waiting(queue.states([job.job for job in record.read()], record.mark))


def in_queue(record: Record, known: Sequence[str]) -> InputError:
    jobs = f"job {known[0]} is" if len(known) == 1 else f"jobs {', '.join(known)} are"
    return InputError(
        f"The {jobs} still in the queue for {record.output}: follow them with --executor slurm --wait, or end them with "
        f"`scancel {' '.join(known)}`."
    )


def refuse_beside_jobs(output: Path) -> None:
    """Raise InputError where jobs of this output wait or run, as far as Slurm can be asked from here."""
    record = Record(output)
    if not record.read() or shutil.which("squeue") is None:
        return
    try:
        known = jobs_in_queue(record)
    except InputError:  # Not from here: units that two do at the same time do no harm.
        return
    if known:
        raise in_queue(record, known)
