"""What evaluations say of contamination beside the scores: what was looked through, and which questions were met in training."""

from dataclasses import dataclass
from typing import Any

from pipeline.reporting.quantities import SPACE, digits, si
from pipeline.reporting.records import dig, number
from pipeline.reporting.runs import Run

EXAMPLES = 3
"""Dirty questions that are shown of each task; results.json has more."""
QUESTION_CHARACTERS = 300


@dataclass(frozen=True)
class Collision:
    """A question of which a stretch of words stands in the training data."""

    run: Run
    task: str
    question: str
    words: str
    place: str
    """Where in training the words were read first."""


def facts(run: Run) -> list[tuple[str, str]]:
    """What was looked through, as name and value."""
    about = dig(run.evaluation, "pipeline", "contamination")
    if not isinstance(about, dict):
        return []
    found = []
    for reading in records(about.get("read")):
        words = [f"{si(tokens)} tokens" if (tokens := number(reading.get("tokens"))) is not None else ""]
        words.append(f"up to step {step:.0f}" if (step := number(reading.get("step"))) is not None else "")
        words.append(f"of {reading['run']}" if reading.get("run") else "")
        found.append(("trained on", " ".join(filter(None, words))))
    indices = about.get("indices")
    for n, index in indices.items() if isinstance(indices, dict) else []:
        count, size = number(dig(index, "ngrams")), number(dig(index, "bytes"))
        found.append(
            (f"index of {n}-grams", f"{si(count)} in {digits(size / 1e6)}{SPACE}MB" if size is not None else si(count))
        )
    for name in [name for name in about if name not in ("read", "indices", "tasks", "unknown")]:
        value = about[name]
        if isinstance(value, str | int | float):
            found.append((str(name).replace("_", " "), str(value)))
    return found


def unknown(run: Run) -> str | None:
    """Why some of what the run has read could not be looked through; None where all was."""
    reason = dig(run.evaluation, "pipeline", "contamination", "unknown")
    return reason if isinstance(reason, str) and reason else None


def collisions(runs: list[Run]) -> list[Collision]:
    """The first dirty questions of each task, with what was read of them."""
    found = []
    for run in runs:
        tasks = dig(run.evaluation, "pipeline", "contamination", "tasks")
        for task, about in tasks.items() if isinstance(tasks, dict) else []:
            found += [collision(run, str(task), one) for one in records(dig(about, "examples"))[:EXAMPLES]]
    return found


def collision(run: Run, task: str, record: dict[str, Any]) -> Collision:
    step, document, other = number(record.get("step")), record.get("document"), record.get("run")
    place = [f"step {step:.0f}" if step is not None else "", f"document {document}" if document else ""]
    place.append(f"of {other}" if other else "")
    question = str(record.get("question") or "")
    if len(question) > QUESTION_CHARACTERS:
        question = question[:QUESTION_CHARACTERS] + " […]"
    return Collision(run, task, question, str(record.get("ngram") or ""), ", ".join(filter(None, place)))


def records(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
