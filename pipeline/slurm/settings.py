"""The `slurm` section of a run's YAML: what its jobs ask the cluster for, and how they start Python there."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep.files import InputError
from data_prep.slurm_time import clock, seconds_of

AMBIGUOUS_BELOW = 36000
"""YAML reads 12:00:00 without quotes as 43200, so a large number is seconds; a small one may be minutes that somebody wrote."""


def limit_of(time: str | int, name: str) -> int:
    """A setting that is a time limit, in seconds."""
    if isinstance(time, int):
        if time < AMBIGUOUS_BELOW:
            raise InputError(
                f"{name} is the number {time}, which may be meant as minutes or as seconds: write it as hours:minutes:seconds in quotes, "
                f"such as '{clock(time * 60)}'"
            )
        return time
    seconds = seconds_of(time)
    if not seconds:
        raise InputError(f"{name} is {time}: a job needs some time, such as 04:00:00")
    return seconds


@dataclass(frozen=True, kw_only=True)
class SideJob:
    """A job beside training, on one node: what prepares the data before it, or evaluates after it."""

    partition: str | None = None
    """Partition; that of training when not given."""
    time: str | int = "04:00:00"
    """Wall time."""
    cpus: int = 4
    """Cores."""
    gpus: int = 0
    """GPUs; of the type of training."""
    mem: str | None = None
    """Memory, as 64G; the partition's default when not given."""
    extra: list[str] = field(default_factory=list)
    """More options of sbatch, each as --name=value."""

    @property
    def seconds(self) -> int:
        return limit_of(self.time, "the time of a job beside training")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """How a run is put on a Slurm cluster; read by `submit`, and of no effect on `fit` itself."""

    nodes: int = 1
    """Nodes of the training job."""
    gpus_per_node: int = 0
    """GPUs a node, one rank each; 0 trains on the processor."""
    gpu_type: str | None = None
    """Type of GPU as the cluster calls it, where it has several: a100, h100."""
    ranks_per_node: int | None = None
    """Ranks a node; one a GPU when not given, or one where there are none."""
    cpus_per_task: int | None = None
    """Cores of a rank; the partition's default when not given."""
    mem: str | None = None
    """Memory of a node, as 512G, or 0 for all of it; the partition's default when not given."""
    time: str | int = "04:00:00"
    """Wall time, as 04:00:00 or 2-00:00:00. A run that needs longer is queued again and goes on."""
    partition: str | None = None
    """Partition; the cluster's default when not given."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have."""
    exclude: str | None = None
    """Nodes not to use, as node[3-4],node7."""
    reservation: str | None = None
    """Reservation to run in."""
    mail_user: str | None = None
    """Address that Slurm writes to at the end, a failure or a requeue."""
    extra: list[str] = field(default_factory=list)
    """More options of sbatch, each as --name=value."""
    setup: str = ""
    """Shell commands before Python, such as `module load cuda; source .venv/bin/activate`. Without them, the Python that submits is used."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    container: str | None = None
    """Image of Apptainer to run Python in; the run directory, the code and the data must be visible inside."""
    container_options: list[str] = field(default_factory=lambda: ["--nv"])
    """Options of `apptainer exec`."""
    python: str | None = None
    """Interpreter. When not given: `python` in a container or after `setup`, else the one that submits."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """srun starts every rank; torchrun is started once a node and starts the ranks there."""
    signal_seconds: int = 120
    """How long before the end of the wall time the ranks are told to save and stop."""
    max_restarts: int = 3
    """So many attempts in a row may end without a newer checkpoint and be followed by another."""
    preflight: bool = True
    """Check the nodes before training starts, and leave out those that fail."""
    preflight_seconds: float = 120.0
    """How long a rank may take to arrive at the preflight before its node counts as bad."""
    data: SideJob = field(default_factory=lambda: SideJob(cpus=8))
    """The job that prepares data, of --after-data."""
    evaluate: SideJob = field(default_factory=SideJob)
    """The job of --then-evaluate."""

    def __post_init__(self):
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("signal_seconds", 0), ("max_restarts", 0)):
            if getattr(self, name) < least:
                raise InputError(f"slurm.{name} is {getattr(self, name)}: it must be {least} or more")
        if self.ranks < 1:
            raise InputError(f"slurm.ranks_per_node is {self.ranks_per_node}: it must be 1 or more")
        if self.gpus_per_node and self.ranks != self.gpus_per_node:
            raise InputError(
                f"slurm.ranks_per_node is {self.ranks} with {self.gpus_per_node} GPUs a node: a rank has one GPU, so leave ranks_per_node out"
            )
        for line in [*self.extra, *self.data.extra, *self.evaluate.extra]:
            if not line.startswith("-") or "\n" in line:
                raise InputError(
                    f"slurm.extra has {line!r}: each must be one option of sbatch, such as --exclusive or --nice=100"
                )
        if self.signal_seconds >= self.seconds:
            raise InputError(
                f"slurm.signal_seconds is {self.signal_seconds}, but the wall time is only {clock(self.seconds)}: lower the one or raise slurm.time"
            )

    @property
    def seconds(self) -> int:
        """The wall time."""
        return limit_of(self.time, "slurm.time")

    @property
    def ranks(self) -> int:
        """Ranks a node."""
        return self.gpus_per_node or 1 if self.ranks_per_node is None else self.ranks_per_node
