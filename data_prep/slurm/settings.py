"""The `slurm` section of a corpus's YAML: what the jobs ask the cluster for. Nothing here changes what comes out."""

import re
from dataclasses import dataclass, field

from data_prep.files import InputError
from data_prep.slurm_time import seconds_of

SECONDS_FROM = 3600
"""YAML reads 4:00:00 without quotes as 14400. A number of minutes that is as large would be two and a half days."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """How jobs ask for their place, one array of jobs for each stage."""

    partition: str | None = None
    """Partition; the cluster's default when not given."""
    time: str | int = "04:00:00"
    """Wall time of each job: 04:00:00, 1-00:00:00 for days, or a number of minutes (from 3600 on of seconds, which is what YAML
    makes of 4:00:00 without quotes). What a job that runs out of it has finished stays, and it is queued again."""
    tasks: int = 8
    """Jobs of each array. More than there are units of work (64 MB of input, say) have nothing to do."""
    cpus_per_task: int = 1
    """Cores of each job, with a process on each."""
    memory: str | int | None = None
    """Memory of each job, as 16G or in MB; the partition's default when not given."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have."""
    setup: list[str] = field(default_factory=list)
    """Shell commands before Python, such as `module load gcc`."""
    python: str | None = None
    """What starts Python there, such as `apptainer exec image.sif python`; the Python that submits when not given."""
    extra: dict[str, str | int | bool] = field(default_factory=dict)
    """More options of sbatch by name, such as {exclude: node7, nice: 100, exclusive: true}."""

    def __post_init__(self) -> None:
        for name in ("tasks", "cpus_per_task"):
            if getattr(self, name) < 1:
                raise InputError(f"slurm.{name} is {getattr(self, name)}: it must be 1 or more.")
        if not self.minutes:
            raise InputError(f"slurm.time is {self.time}: a job needs some time, such as 04:00:00.")
        for name in self.extra:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
                raise InputError(f"slurm.extra names {name!r}: write options of sbatch without dashes before them.")
            if name.replace("_", "-") in ("array", "dependency"):
                raise InputError(f"slurm.extra sets {name!r}, which follows from the stages: leave it out.")
        for value in [*self.setup, *self.extra.values()]:
            if isinstance(value, str) and "\n" in value:
                raise InputError(f"slurm has {value!r}: each command of `setup` and each option is one line.")

    @property
    def minutes(self) -> int:
        """The wall time, a minute that is begun counted whole, as Slurm does."""
        return -(-limit_seconds(self.time) // 60)


def limit_seconds(time: str | int) -> int:
    """A time limit as Slurm writes it, or as a number, in seconds."""
    if isinstance(time, int):
        return time if time >= SECONDS_FROM else time * 60
    try:
        return seconds_of(time)
    except InputError as error:
        raise InputError(f"slurm.time: {error}") from None
