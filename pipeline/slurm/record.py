"""What is kept of a submission in the run directory, and how a run is found again by its name."""

from pathlib import Path
from typing import Any

from data_prep.files import InputError, read_json, write_json
from pipeline.slurm import cluster

FOLDER, LOGS = "submission", "logs"
DATA, TRAIN, EVALUATE = "data", "train", "evaluate"
"""Roles of jobs, in the order of the chain."""


def mark(run: Path) -> str:
    """A job's comment, by which the jobs of a run are found in the queue."""
    return f"run:{run}"


def queued(run: Path) -> list[cluster.Job]:
    """Jobs in the queue that write to this run directory, to one above it or to one below it."""
    found = []
    for job in cluster.jobs():
        if job.over or not job.comment.startswith("run:"):
            continue
        other = Path(job.comment.removeprefix("run:"))
        if other.is_relative_to(run) or run.is_relative_to(other):
            found.append(job)
    return found


class Record:
    """RUN/submission/jobs.json: the jobs that a run was given."""

    def __init__(self, run: Path):
        self.run = run
        self.path = run / FOLDER / "jobs.json"

    def write(self, facts: dict[str, Any]) -> None:
        """Jobs and outputs by role, what they were given, and of an array its members' directories."""
        write_json(self.path, facts)

    def read(self) -> dict[str, Any]:
        """Its content.

        Raises:
            InputError: the run was not submitted.
        """
        if not self.path.exists():
            raise InputError(
                f"{self.run} was not submitted with `python -m pipeline submit`: it has no {FOLDER}/jobs.json"
            )
        return read_json(self.path)


def find(name: str, folder: Path = Path("runs")) -> Path:
    """The run directory that a name or a path means.

    Args:
        folder: Where names are looked for.

    Raises:
        InputError: there is none, or there are several.
    """
    given = Path(name)
    if (given / FOLDER / "jobs.json").exists():
        return given.absolute()
    found = [run for run in submitted(folder) if run.name == name]
    if len(found) == 1:
        return found[0].absolute()
    if found:
        raise InputError(f"{name} may be {' or '.join(map(str, found))}: give the path")
    if given.is_dir():
        raise InputError(f"{name} was not submitted: it has no {FOLDER}/jobs.json")
    known = ", ".join(str(run) for run in submitted(folder)[:8])
    raise InputError(
        f"There is no submitted run {name}: " + (f"there are {known}" if known else f"none below {folder}/")
    )


def submitted(folder: Path) -> list[Path]:
    """Run directories below a folder that were submitted, the newest first; members of an array come after it."""
    records = [path for depth in range(1, 5) for path in folder.glob("*/" * depth + f"{FOLDER}/jobs.json")]
    runs = [path.parent.parent for path in records]
    return sorted(runs, key=lambda run: (-read_json(run / FOLDER / "jobs.json")["submitted"], str(run)))
