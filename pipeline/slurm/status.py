"""How a submitted run is doing: what Slurm says of its jobs, what its directory says of its training, what was before."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import run_state
from pipeline.slurm import cluster
from pipeline.slurm.attempts import LOST, Journal, newest_step
from pipeline.slurm.record import Record
from pipeline.step_records import read_rows

UNKNOWN = "UNKNOWN"
"""State of a job that Slurm has forgotten and no database has kept."""
SILENT_SECONDS = 60
"""A rank that has written no sign of life for so long is worth a word."""


def gather(run: Path, known: Sequence[cluster.Job] | None = None) -> dict[str, Any]:
    """All that is known of a run, as plain values; what is not known is None.

    Args:
        known: The jobs that the controller knows, where asked already; None asks.
    """
    record = Record(run).read()
    jobs = {job.id: job for job in (cluster.jobs() if known is None else known)} if cluster.available() else {}
    return {
        "run": str(run), "name": run.name, "submitted": record["submitted"], "cancelled": record.get("cancelled"),
        "nodes": record["nodes"], "ranks": record["ranks"], "seconds": record["seconds"], "members": record.get("members", []),
        "jobs": [described(role, job, jobs) for role, job in record["jobs"].items()],
        "training": training(run), "attempts": attempts(run), "heartbeats": signs_of_life(run), "bad_nodes": cluster.bad_nodes(run),
    }  # fmt: skip


def described(role: str, job_id: str, jobs: dict[str, cluster.Job]) -> dict[str, Any]:
    """A job as plain values; of an array as a whole, the states that its members are in."""
    mine = [job for name, job in jobs.items() if name == job_id or name.startswith(f"{job_id}_")]
    if not mine:
        # A member of an array that has not begun is not a job of its own yet.
        mine = [job for name, job in jobs.items() if covers(name, job_id)]
    if not mine:
        state = cluster.accounted_state(job_id) if jobs else ""
        return {"role": role, "id": job_id, "state": state or UNKNOWN}
    first = mine[0]
    return {
        "role": role, "id": job_id, "state": "+".join(sorted({job.state for job in mine})), "reason": first.reason,
        "nodes": ",".join(filter(None, (job.nodes for job in mine))), "started": first.started, "ends": first.ends,
        "restarts": sum(job.restarts for job in mine), "exit_code": max(job.exit_code for job in mine), "dependency": first.dependency,
        "excluded": first.excluded,
    }  # fmt: skip


def covers(waiting: str, member: str) -> bool:
    """Whether a waiting part of an array, such as 12_1-3 or 12_1,4, has a member such as 12_2."""
    array, _, numbers = waiting.partition("_")
    wanted, _, number = member.partition("_")
    if array != wanted or not number.isdigit():
        return False
    spans = (part.partition("-") for part in numbers.partition("%")[0].split(","))
    return any(first.isdigit() and int(first) <= int(number) <= int(last or first) for first, _, last in spans)


def training(run: Path) -> dict[str, Any]:
    """Where the training stands, by its own log."""
    facts = read_json(run / "run.json")
    total, rows = facts.get("total_tokens"), read_rows(run / "metrics.csv")
    step_row = next((row for row in reversed(rows) if row.get("train/loss")), {})
    validation = next((row for row in reversed(rows) if row.get("val/loss")), {})
    step, tokens = number(step_row, "step"), number(step_row, "tokens")
    rate = number(step_row, "train/tokens_per_second")
    left = (total - tokens) / rate if total and tokens is not None and rate else None
    return {
        "step": step, "steps": total_steps(run, step, tokens, total), "tokens": tokens, "total_tokens": total,
        "loss": number(step_row, "train/loss"), "validation_loss": number(validation, "val/loss"), "tokens_per_second": rate,
        "mfu": number(step_row, "train/mfu"), "seconds_left": None if left is None else max(left, 0.0),
        "checkpoint_step": newest_step(run) or None,
    }  # fmt: skip


def total_steps(run: Path, step: float | None, tokens: float | None, total: float | None) -> int | None:
    """Steps of the whole run, where they are all of one size."""
    path = run / "config.yaml"
    if not (step and tokens and total and path.exists()):
        return None
    if (yaml.safe_load(path.read_text()).get("data") or {}).get("batch_ramp"):
        return None
    return round(total * step / tokens)


def attempts(run: Path) -> list[dict[str, Any]]:
    """What the supervisor wrote of each attempt; the outcome of one that has no end yet is None."""
    found = [vars(attempt) for attempt in Journal(run).attempts()]
    if found and found[-1]["ended"] is None and found[-1]["outcome"] == LOST:
        found[-1] = found[-1] | {"outcome": None}
    return found


def signs_of_life(run: Path) -> dict[str, Any] | None:
    """Of the ranks: how many, which is furthest behind and what it is at, and how long ago the oldest sign was."""
    beats = run_state.heartbeats(run)
    if not beats:
        return None
    behind = min(beats, key=lambda beat: beat["progress"])
    return {
        "ranks": len(beats), "behind": behind["rank"], "host": behind["host"], "phase": behind["phase"],
        "oldest_seconds": time.time() - min(beat["time"] for beat in beats),
    }  # fmt: skip


def number(row: dict[str, str], name: str) -> float | None:
    value = row.get(name)
    return float(value) if value else None


def read_json(path: Path) -> dict[str, Any]:
    """A small file that may be missing."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
