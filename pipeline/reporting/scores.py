"""Few-shot scores as the figures and tables want them: by task, measure and number of examples, a cell for each run.

Every field beside task and score may be missing: files of older versions and of other evaluations are shown with what they have.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.reporting.quantities import SPACE, digits, percent
from pipeline.reporting.records import dig, number
from pipeline.reporting.runs import Run

KINDS = {
    "news": "News articles",
    "dialogue": "Dialogue",
    "translation": "Translation",
    "reading_comprehension": "Reading comprehension",
    "closed_book_qa": "Closed-book questions",
    "nli": "Natural language inference",
    "cloze": "Cloze",
    "commonsense": "Commonsense",
    "sentiment": "Sentiment",
    "arithmetic": "Arithmetic",
    "scrambling": "Word scrambling",
    "code": "Code",
}
"""What readers call the kinds of tasks, in the order of the page; other kinds follow under their own names."""

POINTS = ("bleu", "chrf", "ter")
"""Measures that go from 0 to 100 by custom, and that may be below 1 of them."""

NOT_OF_ANSWERS = ("distinct", "repetition", "length", "words", "tokens", "whole_sentence", "stopped")
"""Measures that describe a text and say nothing of its being right."""

SIGNIFICANT = 0.05
PARAMETERS = {"GPT-3 Small": 125e6, "GPT-3 Medium": 350e6, "GPT-3 Large": 760e6}


@dataclass(frozen=True)
class Part:
    """A score over some of the questions."""

    score: float
    stderr: float | None
    n: int | None


@dataclass(frozen=True)
class Against:
    """The difference to another run by paired bootstrap, with its interval of 95 % and p-value."""

    run: str
    difference: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Published:
    """A score that others published of a model."""

    model: str
    score: float
    shots: int | None
    split: str
    n: int | None
    comparable: bool
    """Whether it was measured on as many questions as ours, of a whole set."""

    @property
    def parameters(self) -> float | None:
        """Of the model by its name; None where the name does not tell."""
        found = re.search(r"(\d+(?:\.\d+)?) ?([MB])\b", self.model)
        return float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] if found else PARAMETERS.get(self.model)


@dataclass(frozen=True)
class Cell:
    """One run's score: the mean over the seeds that drew its examples, with one standard error over its questions."""

    score: float
    stderr: float | None = None
    spread: float | None = None
    seed_scores: Sequence[float] = ()
    n: int | None = None
    p_chance: float | None = None
    truncated: int = 0
    shots_cut: int = 0
    shots_mean: float | None = None
    against: Against | None = None
    clean: Part | None = None
    dirty: Part | None = None
    dirty_share: float | None = None
    ngram: int | None = None

    @property
    def marked(self) -> bool:
        """Whether its questions were looked up in the training data."""
        return self.clean is not None or self.dirty is not None or self.dirty_share is not None


@dataclass(frozen=True)
class ScoreRow:
    """One score of every run that has it."""

    task: str
    kind: str
    shots: int
    metric: str
    scoring: str
    """"harness", or "paper" where the GPT-3 paper scores another way."""
    n: int | None
    chance: float | None
    unit: str
    """"share" (of 1), "points" (of 100), or "" for what has no upper end, such as a perplexity."""
    higher_is_better: bool
    published: Sequence[Published] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    """By run's name."""

    @property
    def measure(self) -> str:
        return self.metric + (" (paper)" if self.scoring == "paper" and "paper" not in self.metric else "")

    @property
    def key(self) -> tuple[str, str, str]:
        """What the same task is scored by at every number of examples."""
        return self.task, self.metric, self.scoring

    @property
    def right(self) -> bool:
        """Whether it counts right answers, so that more is better and 100 % is all of it."""
        return bool(self.unit) and self.higher_is_better and not self.metric.startswith(NOT_OF_ANSWERS)

    def scaled(self, value: float) -> float:
        """As an axis has it: a share in per cent."""
        return 100 * value if self.unit == "share" else value

    def words(self, value: float | None, signed: bool = False) -> str:
        sign = "+" if signed and value is not None and value > 0 else ""
        if self.unit == "share":
            return sign + percent(value)
        return sign + digits(value, 2 if value is not None and abs(value) < 1 else 3)

    @property
    def unit_words(self) -> str:
        return {"share": "%", "points": "points"}.get(self.unit, "lower is better" if not self.higher_is_better else "")

    def above_chance(self, name: str) -> bool:
        """Whether the score is above chance: by its p-value where it has one, else by more than two standard errors."""
        cell = self.cells.get(name)
        if cell is None or not self.right or self.chance is None or cell.score <= self.chance:
            return False
        if cell.p_chance is not None:
            return cell.p_chance < SIGNIFICANT
        return cell.stderr is not None and cell.score - self.chance > 2 * cell.stderr


def score_rows(runs: list[Run]) -> list[ScoreRow]:
    """The scores of all runs by kind, task, measure and number of examples, in the order in which the evaluations name them."""
    found: dict[tuple[str, str, str, int], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for score in run.scores:
            scoring = "paper" if score.get("scoring") == "paper" else "harness"
            key = (str(score["task"]), str(score.get("metric", "")), scoring, int(number(score.get("shots")) or 0))
            found.setdefault(key, []).append((run, score))
    measures = list(dict.fromkeys(key[:3] for key in found))
    tasks = list(dict.fromkeys(task for task, *_ in measures))
    rows = [row_of(key, entries) for key, entries in found.items()]
    rank = {kind: place for place, kind in enumerate(dict.fromkeys([*KINDS, *(row.kind for row in rows)]))}
    # Tasks of no kind stand last.
    rank[""] = len(rank)
    return sorted(rows, key=lambda r: (rank[r.kind], tasks.index(r.task), measures.index(r.key), r.shots))


def row_of(key: tuple[str, str, str, int], entries: list[tuple[Run, dict[str, Any]]]) -> ScoreRow:
    task, metric, scoring, shots = key
    scores = [score for _, score in entries]
    higher = all(score.get("higher_is_better", True) is not False for score in scores)
    counts = [count for score in scores if (count := whole(score.get("n"))) is not None]
    kinds = [score["kind"] for score in scores if isinstance(score.get("kind"), str)]
    published = {one: None for score in scores for one in published_of(score.get("published"))}
    return ScoreRow(
        task=task,
        kind=kinds[0] if kinds else "",
        shots=shots,
        metric=metric,
        scoring=scoring,
        n=max(counts) if counts else None,
        chance=next((chance for score in scores if (chance := number(score.get("chance"))) is not None), None),
        unit=unit(metric, [score["score"] for score in scores], higher),
        higher_is_better=higher,
        published=list(published),
        cells={run.name: cell_of(score) for run, score in entries},
    )


def unit(metric: str, values: list[float], higher_is_better: bool) -> str:
    """What a measure counts in: "share" of 1, "points" of 100, or "" for neither."""
    if metric.lower().startswith(POINTS):
        return "points"
    if all(0 <= value <= 1 for value in values) and (higher_is_better or metric.startswith(NOT_OF_ANSWERS)):
        return "share"
    # The harness counts some F1 and exact matches to 100.
    of_answers = metric.lower().startswith(("f1", "exact", "em", "acc", "pass"))
    return "points" if of_answers and all(0 <= value <= 100 for value in values) else ""


def cell_of(score: dict[str, Any]) -> Cell:
    seeds = score.get("seed_scores")
    against = score.get("against")
    difference = number(dig(against, "difference"))
    return Cell(
        score=score["score"],
        stderr=number(score.get("stderr")),
        spread=number(score.get("spread")),
        seed_scores=[value for seed in seeds if (value := number(seed)) is not None] if isinstance(seeds, list) else [],
        n=whole(score.get("n")),
        p_chance=number(score.get("p_chance")),
        truncated=whole(score.get("truncated")) or 0,
        shots_cut=whole(score.get("shots_cut")) or 0,
        shots_mean=number(score.get("shots_mean")),
        against=None
        if difference is None
        else Against(
            run=str(dig(against, "run") or "another run"),
            difference=difference,
            low=number(dig(against, "low")),
            high=number(dig(against, "high")),
            p=number(dig(against, "p")),
        ),
        clean=part_of(score.get("clean")),
        dirty=part_of(score.get("dirty")),
        dirty_share=number(score.get("dirty_share")),
        ngram=whole(score.get("ngram")),
    )


def part_of(value: Any) -> Part | None:
    score = number(dig(value, "score"))
    return None if score is None else Part(score, number(dig(value, "stderr")), whole(dig(value, "n")))


def published_of(value: Any) -> list[Published]:
    entries = value if isinstance(value, list) else []
    return [
        Published(
            model=str(entry.get("model") or "unnamed model"),
            score=score,
            shots=whole(entry.get("shots")),
            split=str(entry.get("split") or ""),
            n=whole(entry.get("n")),
            comparable=entry.get("full") is True,
        )
        for entry in entries
        if (score := number(dig(entry, "score"))) is not None
    ]


def whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def principal(rows: list[ScoreRow]) -> dict[str, tuple[str, str, str]]:
    """The one measure of each task that stands for it: one with published figures, else of right answers, else its first."""
    chosen: dict[str, ScoreRow] = {}
    for row in rows:
        held = chosen.get(row.task)
        if held is None or merit(row) > merit(held):
            chosen[row.task] = row
    return {task: row.key for task, row in chosen.items()}


def merit(row: ScoreRow) -> tuple[bool, bool]:
    return row.right, bool(row.published)


def kind_title(kind: str) -> str:
    return KINDS.get(kind) or (kind.replace("_", " ").capitalize() if kind else "Other tasks")


def by_kind(rows: list[ScoreRow]) -> dict[str, list[ScoreRow]]:
    """The rows by the title of their kind, in the page's order."""
    groups: dict[str, list[ScoreRow]] = {}
    for row in rows:
        groups.setdefault(kind_title(row.kind), []).append(row)
    return groups


def p_words(p: float) -> str:
    return f"p{SPACE}<{SPACE}0.001" if p < 0.001 else f"p{SPACE}={SPACE}{digits(p, 2)}"


def shots_words(shots: int | None) -> str:
    return "" if shots is None else f"{shots}-shot"
