"""What a cluster has against a job before it is queued: the partition, its nodes and limits, and where the run directory lies."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.slurm_time import clock
from pipeline.slurm.cluster import Node, Partition
from pipeline.slurm.settings import Slurm

SHARED = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "glusterfs", "fuse.glusterfs", "wekafs", "panfs", "pvfs2", "orangefs",
    "cifs", "smb3", "afs", "9p", "virtiofs", "fuse.sshfs", "fuse.juicefs", "gcsfuse", "fuse.gcsfuse", "quobyte", "fuse.quobyte", "vast", "dvs",
}  # fmt: skip
"""File systems over a network."""
IN_MEMORY = {"tmpfs", "ramfs"}
TEMPORARY = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"))


@dataclass
class Findings:
    """What speaks against a submission, as sentences."""

    refusals: list[str] = field(default_factory=list)
    """It cannot work."""
    warnings: list[str] = field(default_factory=list)
    """It may not."""


def check_partition(settings: Slurm, partitions: Sequence[Partition], nodes: Sequence[Node]) -> list[str]:
    """Why a partition cannot run the training job.

    Args:
        nodes: Of the partition that the job would go to.
    """
    chosen = partition_for(settings, partitions)
    if chosen is None:
        names = ", ".join(partition.name for partition in partitions)
        if settings.partition is None:
            return [f"The cluster has no default partition: set slurm.partition to one of {names}"]
        return [f"There is no partition {settings.partition}: the cluster has {names}"]
    found = []
    if not chosen.up:
        found.append(f"Partition {chosen.name} is down: wait until it is up, or set slurm.partition to another")
    if chosen.seconds is not None and settings.seconds > chosen.seconds:
        found.append(
            f"The wall time is {clock(settings.seconds)}, partition {chosen.name} gives {clock(chosen.seconds)} at most: lower --time; "
            "the run is queued again as often as it needs"
        )
    if chosen.max_nodes is not None and settings.nodes > chosen.max_nodes:
        found.append(
            f"The job needs {settings.nodes} nodes, partition {chosen.name} gives a job {chosen.max_nodes} at most"
        )
    return found + check_nodes(settings, chosen.name, nodes)


def partition_for(settings: Slurm, partitions: Sequence[Partition]) -> Partition | None:
    """The partition that a job goes to: the first one named, or the cluster's default."""
    if settings.partition is None:
        return next((partition for partition in partitions if partition.default), None)
    return next((partition for partition in partitions if partition.name in settings.partition.split(",")), None)


def check_nodes(settings: Slurm, partition: str, nodes: Sequence[Node]) -> list[str]:
    """Why a partition's nodes are too few, or not of the kind."""
    if len(nodes) < settings.nodes:
        return [f"The job needs {settings.nodes} nodes, partition {partition} has {len(nodes)}"]
    kinds = sorted({kind for node in nodes for kind in node.gpus if kind})
    if settings.gpus_per_node and not any(node.gpus for node in nodes):
        return [f"Partition {partition} has no GPUs: set slurm.partition to one that has, or --gpus-per-node 0"]
    if settings.gpu_type and settings.gpu_type not in kinds:
        return [
            f"slurm.gpu_type is {settings.gpu_type}, partition {partition} has {', '.join(kinds) or 'GPUs without a type'}"
        ]
    fitting = [node for node in nodes if offers(node, settings)]
    if len(fitting) < settings.nodes:
        most = max((gpus_of(node, settings) for node in nodes), default=0)
        cores = max((node.cores for node in nodes), default=0)
        what = f"{settings.gpus_per_node} GPUs, " if settings.gpus_per_node else ""
        return [
            f"The job needs {settings.nodes} nodes with {what}{settings.ranks * (settings.cpus_per_task or 1)} cores each, and partition "
            f"{partition} has {len(fitting)}: its largest node has {most} GPUs, {cores} cores"
        ]
    working = [node for node in fitting if node.working]
    if len(working) < settings.nodes:
        return [f"The job needs {settings.nodes} nodes, of partition {partition} only {len(working)} that fit are up"]
    return []


def offers(node: Node, settings: Slurm) -> bool:
    cores = settings.ranks * (settings.cpus_per_task or 1)
    return gpus_of(node, settings) >= settings.gpus_per_node and node.cores >= cores


def gpus_of(node: Node, settings: Slurm) -> int:
    return node.gpus.get(settings.gpu_type, 0) if settings.gpu_type else sum(node.gpus.values())


def check_folder(run: Path, nodes: int, mounts: str | None = None) -> Findings:
    """Whether a run directory looks as if all nodes see it; the preflight proves it.

    Args:
        mounts: Content of /proc/mounts.
    """
    findings = Findings()
    kind = file_system(run, Path("/proc/mounts").read_text() if mounts is None else mounts)
    place = next((folder for folder in TEMPORARY if run.is_relative_to(folder)), None)
    way_out = "set trainer.default_root_dir to a folder of the shared file system (NFS, Lustre, ...)"
    if kind in SHARED:
        return findings
    if kind in IN_MEMORY or place:
        where = f"in {place}" if place else f"on {kind}"
        sentence = f"The run directory {run} lies {where}, which each machine has for itself: {way_out}"
        (findings.refusals if nodes > 1 else findings.warnings).append(sentence)
    elif nodes > 1:
        findings.warnings.append(
            f"The run directory {run} is on a local file system ({kind}); unless this machine serves it to the nodes, {way_out}. "
            "The preflight will tell"
        )
    return findings


def file_system(path: Path, mounts: str) -> str:
    """Type of the file system on which a path lies or will lie."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        _, mount, this_kind, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, this_kind
    return kind


def check_data(configs: Sequence[dict[str, Any]], prepared: dict[str, Any] | None) -> list[str]:
    """Whether the data that runs read is there, or is made by the job before them.

    Args:
        configs: Of the runs, whole.
        prepared: The configuration of that job, if there is one.
    """
    made = Path(prepared["output"]).absolute() / "tokens" if prepared else None
    folders = {Path(folder).absolute() for config in configs for folder in data_folders(config["data"])}
    if made and made not in folders:
        read = ", ".join(sorted(map(str, folders)))
        return [
            f"The data job writes {made}, the run reads {read}: set data.path to the one, or `output` of the data to the other"
        ]
    absent = sorted(str(folder) for folder in folders - {made} if not (folder / "manifest.json").exists())
    return [
        f"There are no token shards at {folder}: run data_prep first, or submit with --after-data FILE"
        for folder in absent
    ]


def data_folders(data: dict[str, Any]) -> list[str]:
    """Where the section `data` of a run reads."""
    parts = (data.get("mixture") or {}).values()
    return [data["path"], *(part["path"] for part in parts if part.get("path"))]


def check_disk(run: Path, needed: int | None) -> list[str]:
    """Whether what a run writes has room.

    Args:
        needed: Bytes of its checkpoints, where known.
    """
    place = next(folder for folder in (run, *run.parents) if folder.exists())
    if not os.access(place, os.W_OK):
        return [f"{place} may not be written to: set trainer.default_root_dir to a folder of your own"]
    free = shutil.disk_usage(place).free
    if needed is not None and needed > free:
        return [
            f"The run's checkpoints take {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free: free some, lower "
            "checkpoint.keep_last, or choose another trainer.default_root_dir"
        ]
    return []
