"""What a running process tells those who look from outside: why it ended, and that it is alive. Small files in the run directory."""

import json
import socket
import time
from pathlib import Path
from typing import Any

from data_prep.files import read_json, write_json

FOLDER = "state"


def state_folder(run: str | Path) -> Path:
    """Where these files lie; nothing in them is needed to go on."""
    return Path(run) / FOLDER


def note_end(run: str | Path, *, code: int, reason: str, step: int | None = None, rank: int = 0) -> None:
    """Say why this rank ends, before it does.

    Args:
        code: its exit status.
        reason: one sentence.
        step: the last optimizer step that is saved, where known.
    """
    content = {
        "code": code, "reason": reason, "step": step, "rank": rank, "host": socket.gethostname(), "time": time.time(),
    }  # fmt: skip
    write_json(state_folder(run) / f"ended-{rank:05d}.json", content)


def ends(run: str | Path) -> list[dict[str, Any]]:
    """What ranks have said of their ends since `clear_ends`, the first to end first."""
    said = [read_json(path) for path in sorted(state_folder(run).glob("ended-*.json"))]
    return sorted(said, key=lambda end: end["time"])


def clear_ends(run: str | Path) -> None:
    for path in state_folder(run).glob("ended-*.json"):
        path.unlink(missing_ok=True)


def note_broken(run: str | Path, *, checkpoint: str, reason: str, aside: str | None, used: str) -> None:
    """Add a line to RUN/state/broken-checkpoints.jsonl: a checkpoint was damaged, and another is used.

    Args:
        aside: its name now, None where nothing of it was left.
        used: the name of the one that training goes on from.
    """
    line = {"checkpoint": checkpoint, "reason": reason, "aside": aside, "used": used, "time": time.time()}
    path = state_folder(run) / "broken-checkpoints.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


# -- signs of life


def heartbeat_file(run: str | Path, rank: int) -> Path:
    return state_folder(run) / "heartbeats" / f"rank-{rank:05d}.json"


def stack_file(run: str | Path, rank: int) -> Path:
    """Where the stacks of a rank's threads are written when the run stands still."""
    return state_folder(run) / "stacks" / f"rank-{rank:05d}.txt"


def heartbeats(run: str | Path) -> list[dict[str, Any]]:
    """The latest sign of life of every rank of the running (or last) attempt, by rank.

    Each has: rank, ranks (how many there are), host, pid, started (of the process, as its system counts), step (optimizer steps
    done), batch (micro-batches of the step begun), phase (what it is at), events (how many times it got on since it began; ranks
    in step have the same), progress (when it last got on) and time (when this was written), both in seconds since the epoch.
    """
    found = []
    for path in sorted((state_folder(run) / "heartbeats").glob("rank-*.json")):
        try:
            found.append(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue  # Being written for the first time, or removed.
    return found


def process_start(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since its system did; None where there is no such process."""
    try:
        return int(process_fields(pid)[19])
    except (OSError, IndexError, ValueError):
        return None


def process_state(pid: int) -> str | None:
    """The letter with which Linux describes what a process of this machine is at; None where there is none."""
    try:
        return process_fields(pid)[0]
    except (OSError, IndexError):
        return None


def process_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
