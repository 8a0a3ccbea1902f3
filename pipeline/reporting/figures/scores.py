"""Few-shot scores with their standard errors, against chance and against each other."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.figures.figure import GREY, Figure, axis, colour, hovering, label, layout
from pipeline.reporting.quantities import percent
from pipeline.reporting.runs import Run, number


@dataclass(frozen=True)
class ScoreRow:
    """One score of every run: a row of the table of scores. `share` says whether it is a share of right answers."""

    task: str
    shots: int
    metric: str
    n: int | None
    chance: float | None
    share: bool
    higher_is_better: bool
    cells: dict[str, tuple[float, float | None]]
    """By run's name: the score and its standard error."""

    def above_chance(self, name: str) -> bool:
        """Whether the score is more than two standard errors above chance."""
        score, stderr = self.cells.get(name, (0.0, None))
        return self.share and self.chance is not None and stderr is not None and score - self.chance > 2 * stderr


def score_rows(runs: list[Run]) -> list[ScoreRow]:
    """The scores of all runs by task, metric and shots, in the order in which the evaluations name them."""
    found: dict[tuple[str, str, int], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for score in run.scores:
            key = (str(score["task"]), str(score.get("metric", "")), int(number(score.get("shots")) or 0))
            found.setdefault(key, []).append((run, score))
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    rows = []
    for task, metric, shots in sorted(found, key=lambda key: (tasks.index(key[0]), key[1], key[2])):
        entries = found[task, metric, shots]
        higher = all(score.get("higher_is_better", True) for _, score in entries)
        counts = [count for _, score in entries if (count := number(score.get("n"))) is not None]
        rows.append(
            ScoreRow(
                task=task,
                shots=shots,
                metric=metric,
                n=int(max(counts)) if counts else None,
                chance=number(entries[0][1].get("chance")),
                share=higher and all(0 <= score["score"] <= 1 for _, score in entries),
                higher_is_better=higher,
                cells={run.name: (score["score"], number(score.get("stderr"))) for run, score in entries},
            )
        )
    return rows


def few_shot(runs: list[Run]) -> Figure | None:
    """Shares of right answers by task and shots, with standard errors and the chance level."""
    rows = [row for row in score_rows(runs) if row.share]
    if not rows:
        return None
    names = list(dict.fromkeys((row.task, row.metric) for row in rows))
    places = {name: len(names) - k for k, name in enumerate(names)}
    shots = sorted({row.shots for row in rows})
    scored = [(position, run) for position, run in enumerate(runs) if any(run.name in row.cells for row in rows)]
    series = [(position, run, count) for position, run in scored for count in shots]
    # The marks of one task stand one above the other, in the order of the legend.
    step = 0.62 / max(1, len(series) - 1)
    traces = []
    for k, (position, run, count) in enumerate(series):
        marked = [row for row in rows if row.shots == count and run.name in row.cells]
        heights = [places[row.task, row.metric] + 0.31 - k * step for row in marked]
        symbol = ("circle-open", "circle", "diamond", "square", "triangle-up")[shots.index(count) % 5]
        traces.append(marks(position, run, f"{run.name}, {count}-shot", symbol, marked, heights))
    chance = {(row.task, row.metric): row.chance for row in rows if row.chance is not None}
    if chance:
        traces.append(chance_marks([(places[name], level) for name, level in chance.items()]))
    highest = max(100 * (score + (stderr or 0)) for row in rows for score, stderr in row.cells.values())
    highest = max(highest, *(100 * level for level in chance.values()), 1.0)
    return Figure(
        name="scores",
        traces=traces,
        layout=layout(
            130 + len(names) * max(34, 12 * len(series)),
            xaxis=axis("Right answers (%)", range=[-0.02 * highest, 1.06 * highest]),
            yaxis=task_axis(names),
            shapes=[separator(edge + 0.5) for edge in range(1, len(names))],
        ),
        reading=read_scores([run for _, run in scored], rows),
    )


def marks(
    position: int, run: Run, name: str, symbol: str, rows: list[ScoreRow], heights: list[float]
) -> dict[str, Any]:
    """One run's scores at one number of shots, each with one standard error to each side."""
    cells = [row.cells[run.name] for row in rows]
    errors = [100 * stderr if stderr is not None else 0 for _, stderr in cells]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [100 * score for score, _ in cells],
        "y": heights,
        "error_x": {"type": "data", "array": errors, "thickness": 1.5, "width": 0, "color": colour(position)},
        "marker": {
            "color": colour(position),
            "size": 9,
            "symbol": symbol,
            "line": {"width": 2, "color": colour(position)},
        },
        "text": [
            f"{label(row.task)}, {label(row.metric)}<br>{percent(score)}"
            + (f" ± {percent(stderr)}" if stderr is not None else "")
            + (f"<br>chance {percent(row.chance)}" if row.chance is not None else "")
            for row, (score, stderr) in zip(rows, cells, strict=True)
        ],
        "hovertemplate": hovering("%{text}"),
    }


def chance_marks(levels: list[tuple[int, float]]) -> dict[str, Any]:
    """A dotted mark at each task's place where guessing would score."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "chance",
        "x": [x for _, level in levels for x in (100 * level, 100 * level, None)],
        "y": [y for place, _ in levels for y in (place - 0.42, place + 0.42, None)],
        "line": {"color": GREY, "width": 2, "dash": "dot"},
        "hoverinfo": "skip",
    }


def task_axis(names: list[tuple[str, str]]) -> dict[str, Any]:
    """The tasks from top to bottom; a task with several metrics names them."""
    several = {task for task, _ in names if sum(task == other for other, _ in names) > 1}
    ticks = [label(f"{task} ({metric})" if task in several else task) for task, metric in names]
    places = list(range(len(names), 0, -1))
    return axis("", tickvals=places, ticktext=ticks, range=[0.45, len(names) + 0.55], showgrid=False, ticks="")


def separator(height: float) -> dict[str, Any]:
    rule = {"color": "rgba(134,140,148,0.25)", "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": rule}


def read_scores(runs: list[Run], rows: list[ScoreRow]) -> str:
    """How many scores stand out from chance, and from the other run's, by more than two standard errors."""
    parts = []
    for run in runs:
        own = [row for row in rows if row.chance is not None and run.name in row.cells]
        if own:
            above = sum(row.above_chance(run.name) for row in own)
            words = "is more than two standard errors above chance" if not parts else "is so"
            parts.append(f"{run.name} {words} in {above or 'none'} of {len(own)} scores")
    if len(runs) == 2:
        first, second = runs
        shared = [(row.cells[first.name], row.cells[second.name]) for row in rows if len(row.cells) == 2]
        apart = [a > b for (a, e), (b, f) in shared if abs(a - b) > 2 * math.hypot(e or 0, f or 0)]
        leads = [(first, second, sum(apart)), (second, first, len(apart) - sum(apart))]
        for winner, loser, count in leads:
            if count:
                parts.append(
                    f"{winner.name} leads {loser.name} by more than two standard errors in {count} of {len(shared)}"
                )
        if shared and not apart:
            parts.append("the two runs differ by more than two standard errors in none")
    return "; ".join(parts) + "." if parts else "The scores state no chance level to be compared with."
