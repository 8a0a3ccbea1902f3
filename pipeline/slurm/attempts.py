"""The journal of a run's attempts: when each began and how it ended, one line of JSON each. It survives whatever ends an attempt."""

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

JOURNAL = "attempts.jsonl"

DONE, REQUEUED, RESTARTED, STOPPED, REFUSED, FAILED = "done", "requeued", "restarted", "stopped", "refused", "failed"
LOST = "lost"
"""Of an attempt that has no end in the journal: its node, or whoever keeps the journal, went away in the middle."""


@dataclass(frozen=True)
class Attempt:
    """One time that training was started."""

    number: int
    job: str
    """The Slurm job, or the process that supervises where there is none: attempts of one job are held against each other."""
    nodes: str
    began: float
    from_step: int
    """The checkpoint that it could go on from; 0: none."""
    ended: float | None = None
    to_step: int | None = None
    """The newest checkpoint at its end."""
    code: int | None = None
    outcome: str = LOST
    reason: str = ""
    counts: bool = True
    """Whether it counts against the bound when it brought the run no further: what others ask for, such as a preemption, does not."""


class Journal:
    """RUN/attempts.jsonl."""

    def __init__(self, run: str | Path):
        self.run = Path(run)
        self.path = self.run / JOURNAL

    def attempts(self) -> list[Attempt]:
        """All so far; the last one may still be going on."""
        found: dict[int, dict[str, Any]] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # Cut short by a power cut.
            found.setdefault(entry["number"], {}).update(entry)
        return [Attempt(**values) for values in found.values()]

    def begin(self, job: str, nodes: str) -> Attempt:
        number = max((attempt.number for attempt in self.attempts()), default=0) + 1
        attempt = Attempt(number, job, nodes, time.time(), newest_step(self.run))
        self.append({name: value for name, value in asdict(attempt).items() if name in BEGINNING})
        return attempt

    def end(self, attempt: Attempt, *, code: int, outcome: str, reason: str, counts: bool) -> None:
        self.append(
            {
                "number": attempt.number, "ended": time.time(), "to_step": newest_step(self.run), "code": code,
                "outcome": outcome, "reason": reason, "counts": counts,
            }
        )  # fmt: skip

    def append(self, entry: dict[str, Any]) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def without_progress(self, job: str) -> int:
        """How many of a job's attempts in a row, up to now, count and brought the run no further."""
        count, newest = 0, newest_step(self.run)
        for attempt in reversed([attempt for attempt in self.attempts() if attempt.job == job]):
            if (newest if attempt.to_step is None else attempt.to_step) > attempt.from_step:
                break
            count += attempt.counts
        return count


BEGINNING = ("number", "job", "nodes", "began", "from_step")


def newest_step(run: str | Path) -> int:
    """The step of the newest checkpoint that stands under its name; 0 where there is none."""
    names = [path.name for path in (Path(run) / "checkpoints").glob("step-*")]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), default=0)
