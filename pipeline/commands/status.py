"""`python -m pipeline status`: jobs and training of submitted runs."""

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_ATTEMPTS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="name or directory of a run (default: all submitted ones)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where runs are looked for (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="everything that is known, for programs")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from pipeline.slurm import cluster, record, status

    folders = [record.find(arguments.run, arguments.runs)] if arguments.run else record.submitted(arguments.runs)
    known = cluster.jobs() if cluster.available() else []
    runs = [status.gather(folder, known) for folder in folders]
    if arguments.run and runs[0]["members"]:
        runs += [status.gather(Path(member), known) for member in runs[0]["members"]]
    if arguments.json:
        print(json.dumps(runs if len(runs) != 1 or not arguments.run else runs[0], indent=2))
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if not runs:
        console.print(f"No run below {arguments.runs}/ was submitted.", soft_wrap=True)
    elif len(runs) == 1 and arguments.run:
        detail(console, runs[0])
    else:
        console.print(overview(runs))
    if not cluster.available():
        console.print(
            "Slurm is not on this machine: what its jobs do is not known here.", style="yellow", soft_wrap=True
        )
    return 0


def overview(runs: list[dict[str, Any]]) -> "Table":
    """A row a run."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "job", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "loss", "tokens/s", "left"):
        table.add_column(name, no_wrap=True, justify="right")
    for each in runs:
        if each["members"]:
            continue  # A line for each of them stands beside.
        job, training = current(each["jobs"]), each["training"]
        table.add_row(
            short(each["run"]), job["id"], job["state"], progress(training), figure(training["loss"], ".3f"),
            figure(training["tokens_per_second"], ",.0f"), span(training["seconds_left"]),
        )  # fmt: skip
    return table


def detail(console: Any, each: dict[str, Any]) -> None:
    """All of one run, a line for each thing that is known."""
    training, lines = each["training"], []
    lines.append(
        (short(each["run"]), f"submitted {moment(each['submitted'])}, {each['nodes']} node(s), {each['ranks']} rank(s)")
    )
    for job in each["jobs"]:
        facts = [f"job {job['id']}", state_of(job)]
        facts += [f"on {job['nodes']}"] if job.get("nodes") else []
        if job.get("started"):
            facts.append(f"{'starts' if job['state'] == 'PENDING' else 'since'} {moment(job['started'])}")
        if job.get("ends") and job["state"] == "RUNNING":
            facts.append(f"until {moment(job['ends'])} at the latest")
        facts += [f"queued again {job['restarts']} time(s)"] if job.get("restarts") else []
        facts += [f"without {job['excluded']}"] if job.get("excluded") else []
        lines.append((job["role"], ", ".join(facts)))
    if training["step"] is not None:
        lines.append(
            ("training", f"step {progress(training)}, {share(training)} tokens, loss {figure(training['loss'], '.4f')}")
        )
        rate = f"{figure(training['tokens_per_second'], ',.0f')} tokens/s, MFU {figure(training['mfu'], '.1%')}"
        lines.append(("speed", f"{rate}; {span(training['seconds_left'])} of training left"))
    if training["validation_loss"] is not None:
        lines.append(("validation", f"loss {training['validation_loss']:.4f}"))
    if training["checkpoint_step"]:
        lines.append(("checkpoint", f"newest after step {training['checkpoint_step']}"))
    if (beats := each["heartbeats"]) and current(each["jobs"])["state"] == "RUNNING":
        lines.append(
            ("ranks", f"{beats['ranks']}; furthest behind: rank {beats['behind']} on {beats['host']}, {beats['phase']}")
        )
    if each["cancelled"]:
        lines.append(("cancelled", moment(each["cancelled"])))
    if each["bad_nodes"]:
        lines.append(("bad nodes", ", ".join(each["bad_nodes"])))
    for attempt in each["attempts"][-SHOWN_ATTEMPTS:]:
        end = f"{attempt['outcome']}: {attempt['reason']}" if attempt["outcome"] else "going on"
        steps = f"from step {attempt['from_step']}" + (
            f" to {attempt['to_step']}" if attempt["to_step"] is not None else ""
        )
        lines.append((f"attempt {attempt['number']}", f"{moment(attempt['began'])}, {steps}, {end}"))
    width = max(len(name) for name, _ in lines[1:])
    console.print(f"[bold]{lines[0][0]}[/bold]: {lines[0][1]}", soft_wrap=True)
    for name, text in lines[1:]:
        console.print(f"  {name:{width}}  {text}", soft_wrap=True, markup=False)


def current(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The job that a run is at: the first that has not succeeded."""
    return next((job for job in jobs if job["state"] != "COMPLETED"), jobs[-1])


def state_of(job: dict[str, Any]) -> str:
    reason = job.get("reason")
    code = f" with exit status {job['exit_code']}" if job["state"] == "FAILED" else ""
    return f"{job['state']}{code}" + (f" ({reason})" if reason and job["state"] in ("PENDING", "FAILED") else "")


def progress(training: dict[str, Any]) -> str:
    if training["step"] is None:
        return ""
    return f"{training['step']:,.0f}" + (f" of {training['steps']:,}" if training["steps"] else "")


def share(training: dict[str, Any]) -> str:
    if training["tokens"] is None:
        return ""
    total = training["total_tokens"]
    return f"{count(training['tokens'])}" + (f" of {count(total)}" if total else "")


def count(tokens: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if tokens >= size:
            return f"{tokens / size:.3g}{letter}"
    return f"{tokens:,.0f}"


def figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def short(run: str) -> str:
    """A directory as seen from here."""
    path = Path(run)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else run
