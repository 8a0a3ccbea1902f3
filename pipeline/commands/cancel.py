"""`python -m pipeline cancel`: a submitted run's jobs, all of its chain, taken off the cluster."""

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Training that runs has until the cluster's KillWait (30 s by default) to save; submitted again, the run goes on from there."
    parser.add_argument("run", metavar="RUN", help="name or directory of a run, of an array or of one of its members")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs are looked for (default: runs)"
    )


def run(arguments: argparse.Namespace) -> int:
    from data_prep.files import InputError
    from pipeline.slurm import cluster, record
    from pipeline.slurm.status import described

    folder = record.find(arguments.run, arguments.runs)
    if not cluster.available():
        raise InputError("scancel is not on this machine: cancel from a login node of the cluster")
    kept = record.Record(folder)
    facts, known = kept.read(), {job.id: job for job in cluster.jobs()}
    jobs = [described(role, job, known) for role, job in facts["jobs"].items()]
    alive = [job for job in jobs if not set(job["state"].split("+")) <= cluster.FINAL | {"UNKNOWN"}]
    # The last first, so that none begins because the one before it has ended.
    cluster.cancel([job["id"] for job in reversed(alive)])
    for job in jobs:
        if job in alive:
            print(f"job {job['id']} ({job['role']}) is cancelled; it was {job['state'].lower().replace('+', ' and ')}")
        else:
            print(f"job {job['id']} ({job['role']}) was over: {job['state'].lower()}")
    if alive:
        kept.write(facts | {"cancelled": time.time()})
    return 0
