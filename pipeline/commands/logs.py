"""`python -m pipeline logs`: the output of a submitted run's jobs, and what is added to it until they are over."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_QUESTIONS = 5.0
"""Slurm's controller is not to be asked too often."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "A job that is queued again writes on into the same file. Ctrl-C ends the following, and nothing else."
    )
    parser.add_argument("run", metavar="RUN", help="name or directory of a run")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run's jobs are over")
    parser.add_argument(
        "-n", "--lines", type=int, metavar="N", help="begin with the last N lines of each job (default: all)"
    )
    parser.add_argument(
        "--job", choices=("data", "train", "evaluate"), help="of this job alone (default: all, one after the other)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs are looked for (default: runs)"
    )


def run(arguments: argparse.Namespace) -> int:
    from data_prep.files import InputError
    from pipeline.slurm import record

    folder = record.find(arguments.run, arguments.runs)
    facts = record.Record(folder).read()
    if facts.get("members"):
        raise InputError(f"{folder} is an array: name one of its runs, such as {facts['members'][0]}")
    outputs = facts["outputs"]
    if arguments.job and arguments.job not in outputs:
        raise InputError(
            f"{folder} was submitted without a job that does `{arguments.job}`: it has {', '.join(outputs)}"
        )
    chosen = {role: path for role, path in outputs.items() if arguments.job in (None, role)}
    for role, path in chosen.items():
        if len(chosen) > 1:
            print(f"==> {role}, job {facts['jobs'][role]} <==", flush=True)
        show(Path(path), facts["jobs"][role], arguments.lines, arguments.follow)
    return 0


def show(path: Path, job_id: str, lines: int | None, follow: bool) -> None:
    """Print what a job has written; with `follow`, until it is over."""
    from pipeline.slurm import cluster

    position = print_from(path, 0, lines)
    if not path.exists():
        state = cluster.job(job_id) if cluster.available() else None
        reason = f" ({state.reason})" if state and state.reason else ""
        print(
            f"job {job_id} has written nothing yet: it is {state.state.lower() if state else 'unknown'}{reason}",
            file=sys.stderr,
        )
    if not follow:
        return
    over, asked = False, 0.0
    while not over:
        if time.monotonic() - asked > SECONDS_BETWEEN_QUESTIONS:
            asked = time.monotonic()
            over = is_over(cluster.job_state, job_id)
        if not over:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        # Once more after the end: what was written last.
        position = print_from(path, position)
    print(f"job {job_id} is over: {(cluster.job_state(job_id) or 'unknown').lower()}", file=sys.stderr)


def is_over(state: Callable[[str], str], job_id: str) -> bool:
    from pipeline.slurm.cluster import FINAL

    return state(job_id) in FINAL | {""}


def print_from(path: Path, position: int, lines: int | None = None) -> int:
    """Print a file from a position on, or its last lines; return where it ended."""
    if not path.exists():
        return position
    with path.open("rb") as file:
        file.seek(position)
        text = file.read()
    shown = b"".join(deque(text.splitlines(keepends=True), maxlen=lines)) if lines is not None else text
    sys.stdout.write(shown.decode(errors="replace"))
    sys.stdout.flush()
    return position + len(text)
