"""Small figures side by side, one a task, that share what they are drawn against; and the marks that they are made of.

Each panel is a figure of its own: the page's grid sets as many beside each other as fit, on a telephone one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.reporting.figures.figure import GREY, Figure, axis, colour, hovering, label, layout, line
from pipeline.reporting.quantities import SPACE
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import Cell, Published, ScoreRow, kind_title, shots_words

PUBLISHED_SYMBOLS = ("diamond-open", "square-open", "triangle-up-open", "cross-open")
SYMBOL_LETTERS = {"diamond-open": "◇", "square-open": "□", "triangle-up-open": "△", "cross-open": "✚"}


@dataclass(frozen=True)
class Panel:
    """One small figure; `note` says of what kind its task is and what is measured."""

    title: str
    note: str
    figure: Figure


@dataclass(frozen=True)
class Panels:
    """Panels in the order of their kinds, those of other measures apart, and the sentence that reads them all."""

    panels: list[Panel]
    others: list[Panel]
    runs: list[Run]
    legend: list[str]
    reading: str


@dataclass
class Models:
    """The published models of a figure, each with one mark in all of its panels."""

    names: list[str] = field(default_factory=list)

    def symbol(self, model: str) -> str:
        if model not in self.names:
            self.names.append(model)
        return PUBLISHED_SYMBOLS[self.names.index(model) % len(PUBLISHED_SYMBOLS)]

    @property
    def legend(self) -> list[str]:
        return [f"{SYMBOL_LETTERS[self.symbol(name)]} {name}, published" for name in self.names]


def panel_layout(x: dict[str, Any], y: dict[str, Any], height: int = 190) -> dict[str, Any]:
    margin = {"l": 34, "r": 12, "t": 8, "b": 26}
    return layout(
        height,
        margin=margin,
        showlegend=False,
        xaxis=axis("", **x),
        yaxis=axis("", **{"nticks": 5, "rangemode": "nonnegative"} | y),
    )


def note_of(row: ScoreRow) -> str:
    return ", ".join(filter(None, [kind_title(row.kind) if row.kind else "", row.measure, row.unit_words]))


def score_words(row: ScoreRow, cell: Cell) -> str:
    """What pointing at a score tells of it."""
    words = row.words(cell.score) + (f" ± {row.words(cell.stderr)}" if cell.stderr is not None else "")
    if cell.spread is not None and len(cell.seed_scores) > 1:
        words += f"<br>{len(cell.seed_scores)} seeds spread ± {row.words(cell.spread)}"
    if cell.shots_cut and cell.shots_mean is not None:
        words += f"<br>{cell.shots_mean:.3g} of {row.shots} examples fitted, on average"
    if row.chance is not None:
        words += f"<br>chance {row.words(row.chance)}"
    return words


def scored_line(
    position: int, run: Run, x: list[Any], points: Sequence[tuple[ScoreRow, Cell]], places: list[str]
) -> dict[str, Any]:
    """A run's scores joined by a line, each with one standard error; `places` says where each stands."""
    errors = [row.scaled(cell.stderr) if cell.stderr is not None else 0 for row, cell in points]
    made = line(position, run.name, x, [row.scaled(cell.score) for row, cell in points], "%{text}")
    return made | {
        "mode": "lines+markers",
        "marker": {"size": 7, "color": colour(position)},
        "error_y": {"type": "data", "array": errors, "thickness": 1.2, "width": 0, "color": colour(position)},
        "text": [f"{place}<br>{score_words(row, cell)}" for place, (row, cell) in zip(places, points, strict=True)],
    }


def seed_marks(
    position: int, run: Run, x: list[float], points: Sequence[tuple[ScoreRow, Cell]]
) -> dict[str, Any] | None:
    """The scores of the single seeds, faint, where several drew the examples."""
    marks = [
        (place, row.scaled(score))
        for place, (row, cell) in zip(x, points, strict=True)
        if len(cell.seed_scores) > 1
        for score in cell.seed_scores
    ]
    if not marks:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(f"{run.name}, single seeds"),
        "x": [place for place, _ in marks],
        "y": [score for _, score in marks],
        "marker": {"size": 4, "color": colour(position), "opacity": 0.5},
        "hoverinfo": "skip",
    }


def chance_line(row: ScoreRow, x: Sequence[float]) -> list[dict[str, Any]]:
    if row.chance is None or not x:
        return []
    level = row.scaled(row.chance)
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "chance",
            "x": [min(x), max(x)],
            "y": [level, level],
            "line": {"color": GREY, "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]


def published_marks(
    row: ScoreRow, models: Models, points: Sequence[tuple[float, Published]], colour: str = "#7c8894"
) -> list[dict[str, Any]]:
    """The published scores of each model at their places."""
    marks = []
    for model in dict.fromkeys(entry.model for _, entry in points):
        own = [(x, entry) for x, entry in points if entry.model == model]
        marks.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(model),
                "x": [x for x, _ in own],
                "y": [row.scaled(entry.score) for _, entry in own],
                "marker": {"size": 10, "symbol": models.symbol(model), "color": colour, "line": {"width": 2}},
                "text": [published_words(row, entry) for _, entry in own],
                "hovertemplate": hovering("%{text}"),
            }
        )
    return marks


def published_words(row: ScoreRow, entry: Published) -> str:
    """A published score with what it was measured on."""
    measured = " ".join(
        filter(None, [label(entry.split), f"({entry.n:,} questions)".replace(",", SPACE) if entry.n else ""])
    )
    where = "full set, as ours" if entry.comparable else "full set, not as ours"
    return f"published{', ' + shots_words(entry.shots) if entry.shots is not None else ''}<br>{row.words(entry.score)}<br>{measured or 'set unknown'}, {where}"
