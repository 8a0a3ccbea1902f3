"""Scores of the questions that a model has not met in training, beside those that it has (Brown et al. 2020, appendix C)."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks.manager import TaskDict

from pipeline.evaluation import paper_scores, protocol, statistics
from pipeline.evaluation.contamination import Contamination, Mark, choose_n, example_text

EXAMPLES = 20
"""Dirty questions of a task that are shown with what they collide with."""


class CleanScores:
    """Splits the scores of tasks by what a checkpoint had read.

    Attributes:
        about: by task: N, the numbers of dirty, clean, short and unknown questions, and of the first dirty ones what collided and where.
    """

    def __init__(self, contamination: Contamination):
        self.contamination = contamination
        self.about: dict[str, dict[str, Any]] = {}
        self._marks: dict[str, dict[str, bool | None]] = {}

    def add(self, rows: list[dict[str, Any]], output: dict[str, Any], loaded: TaskDict) -> None:
        """Mark each sample of an output of `protocol.score` (`contaminated`), and give its rows the scores of both parts.

        Raises:
            InputError: what the run has trained on is not at hand.
        """
        for name, task in loaded["tasks"].items():
            samples = output["samples"][name]
            # A question is the same at every K and seed.
            if name not in self._marks:
                self._look(name, task, {sample["question"]: sample["doc"] for sample in samples})
            for sample in samples:
                sample["contaminated"] = self._marks[name][sample["question"]]
        for row in rows:
            if (task := loaded["tasks"].get(row["task"])) is not None:
                self._split(row, output["samples"][row["task"]], task)

    def remarks(self) -> list[str]:
        """What a reader of the scores must know: questions too short to tell, and what the model read that is not known."""
        short = [
            f"{name}: {about['short']} of {asked} questions have fewer than {about['ngram']} words; they count as clean, but nobody can tell."
            for name, about in self.about.items()
            if (asked := about["dirty"] + about["clean"] + about["unknown"]) and about["short"]
        ]
        return short + ([f"{self.contamination.unknown.rstrip('.')}."] if self.contamination.unknown else [])

    def _look(self, name: str, task: Task, docs: dict[str, Any]) -> None:
        texts = [example_text(task, doc) for doc in docs.values()]
        n = choose_n(texts)
        marks = self.contamination.marks(texts, n)
        self._marks[name] = {question: mark.dirty for question, mark in zip(docs, marks, strict=True)}
        self.about[name] = {"ngram": n, **counts(marks), "examples": examples(texts, marks)}

    def _split(self, row: dict[str, Any], samples: list[dict[str, Any]], task: Task) -> None:
        metric, _, filtered = row["metric"].partition(",")
        filtered = filtered or (paper_scores.FILTER if row["scoring"] == "paper" else "none")
        about = self.about[row["task"]]
        row["ngram"] = about["ngram"]
        row["dirty_share"] = about["dirty"] / len(self._marks[row["task"]])
        for part, wanted in (("clean", False), ("dirty", True)):
            chosen = [sample for sample in samples if sample["contaminated"] is wanted]
            row[part] = part_score(task, metric, protocol.values_of(chosen, metric, filtered) if chosen else [])


def counts(marks: Sequence[Mark]) -> dict[str, int]:
    return {
        "dirty": sum(mark.dirty is True for mark in marks),
        "clean": sum(mark.dirty is False for mark in marks),
        "short": sum(mark.short for mark in marks),
        "unknown": sum(mark.dirty is None for mark in marks),
    }


def examples(texts: Sequence[str], marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """The first dirty questions: what collides, which step read it first, and in which document."""
    dirty = [(text, mark) for text, mark in zip(texts, marks, strict=True) if mark.dirty][:EXAMPLES]
    return [
        {"question": text, "ngram": mark.ngram, "step": mark.step, "document": mark.document, "run": mark.run}
        for text, mark in dirty
    ]


def part_score(task: Task, metric: str, values: list[Any]) -> dict[str, Any] | None:
    """The score of some of the questions; None of none."""
    if not values:
        return None
    aggregate = protocol.aggregate_of(task, metric, values)
    if aggregate is None:
        return {"score": sum(values) / len(values), "stderr": statistics.mean_stderr(values), "n": len(values)}
    stderr = statistics.bootstrap_stderr(values, aggregate) if len(values) > 1 else None
    return protocol.json_safe({"score": aggregate(values), "stderr": stderr, "n": len(values)})
