"""All few-shot scores at a glance, with their standard errors, against chance and against each other."""

import math
from typing import Any

from pipeline.reporting.figures.figure import GREY, Choice, Figure, axis, colour, hovering, label, layout
from pipeline.reporting.figures.panels import score_words
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import ScoreRow, by_kind, principal, shots_words

MANY_MEASURES = 16
"""With more tasks and measures than these, one measure stands for a task and the table has the others."""
MANY_TASKS = 12
"""With more than these a reader may choose one kind of tasks."""
SEVERAL_COUNTS = 3
"""With more numbers of examples than these, the fewest and the most of each task stand for the others."""

SEVERAL_RUNS = 3
"""With more runs than these only the most examples of each task are shown."""

Name = tuple[str, str, str]
"""Task, metric and scoring: one place of the figure."""


def few_shot(runs: list[Run], every: list[ScoreRow]) -> Figure | None:
    """Shares of right answers by kind, task and number of examples, with standard errors and the chance level."""
    rows = [row for row in every if row.right]
    if len({row.key for row in rows}) > MANY_MEASURES:
        leading = principal(rows)
        rows = [row for row in rows if leading[row.task] == row.key]
    if not rows:
        return None
    scored = [(position, run) for position, run in enumerate(runs) if any(run.name in row.cells for row in rows)]
    counted = by_count(rows, only_most=len(scored) > SEVERAL_RUNS)
    rows = [row for row in rows if any(row in found for found in counted.values())]
    names = {row.key: row for row in rows}
    places, headings = placed(rows)
    series = [(position, run, count) for position, run in scored for count in counted]
    # The marks of one task stand one above the other, in the order of the legend.
    step = 0.62 / max(1, len(series) - 1)
    traces = []
    for k, (position, run, count) in enumerate(series):
        marked = [row for row in counted[count] if run.name in row.cells]
        heights = [places[row.key] + 0.31 - k * step for row in marked]
        symbol = "circle" if len(counted) == 1 else ("circle-open", "circle", "diamond")[[*counted].index(count)]
        if marked:
            traces.append(marks(position, run, f"{run.name}, {count}", symbol, marked, heights))
    chance = {row.key: row.scaled(row.chance) for row in rows if row.chance is not None}
    if chance:
        traces.append(chance_marks([(places[name], level) for name, level in chance.items()]))
    pixels = max(28, (12 if len(names) <= MANY_TASKS else 7) * len(series))
    top, bottom = max(places.values(), default=1) + 0.55, 0.45
    top += 0.8 * bool(headings)
    points = any(row.unit == "points" for row in rows)
    return Figure(
        name="scores",
        traces=traces,
        layout=layout(
            height_of(top - bottom, pixels),
            xaxis=axis("Right answers (%)" + (" or points" if points else ""), range=span(rows)),
            yaxis=task_axis(names, places, [bottom, top]),
            shapes=[separator(place - 0.5) for place in places.values() if place > 1],
            annotations=[heading(title, place) for title, place in headings.items()],
        ),
        reading=read_scores([run for _, run in scored], rows),
        choices={"Kind": kind_choices(rows, places, [bottom, top], pixels)}
        if len(names) > MANY_TASKS and headings
        else {},
    )


def by_count(rows: list[ScoreRow], only_most: bool = False) -> dict[str, list[ScoreRow]]:
    """The rows by their number of examples; where there are many such numbers, the fewest and the most of each task."""
    counts = sorted({row.shots for row in rows})
    of_name: dict[Name, list[int]] = {}
    for row in rows:
        of_name.setdefault(row.key, []).append(row.shots)
    most = [row for row in rows if row.shots == max(of_name[row.key])]
    if only_most and len(counts) > 1:
        return {"most examples": most}
    if len(counts) <= SEVERAL_COUNTS:
        return {shots_words(count): [row for row in rows if row.shots == count] for count in counts}
    several = [row for row in most if len(of_name[row.key]) > 1]
    return {"fewest examples": [row for row in rows if row.shots == min(of_name[row.key])], "most examples": several}


def placed(rows: list[ScoreRow]) -> tuple[dict[Name, int], dict[str, float]]:
    """Heights of the tasks and, where there are several kinds, of their titles, from top to bottom."""
    groups = {title: list(dict.fromkeys(row.key for row in found)) for title, found in by_kind(rows).items()}
    titled = len(groups) > 1
    height = sum(len(names) for names in groups.values()) + (len(groups) - 1) * titled
    places: dict[Name, int] = {}
    headings: dict[str, float] = {}
    for title, names in groups.items():
        if titled:
            headings[title] = height + 0.85
        for name in names:
            places[name] = height
            height -= 1
        height -= titled
    return places, headings


def height_of(rows: float, pixels: int) -> int:
    """A figure's height for so many rows of so many pixels, with axis and legend."""
    return round(110 + rows * pixels)


def span(rows: list[ScoreRow]) -> list[float]:
    ends = [row.scaled(cell.score + (cell.stderr or 0)) for row in rows for cell in row.cells.values()]
    highest = max(*ends, *(row.scaled(row.chance) for row in rows if row.chance is not None), 1.0)
    return [-0.02 * highest, 1.06 * highest]


def kind_choices(rows: list[ScoreRow], places: dict[Name, int], whole: list[float], pixels: int) -> list[Choice]:
    """All kinds, then each alone: the axis is cut to its tasks and the figure to their number."""
    choices = [
        Choice(
            "All",
            {},
            {"yaxis.range": whole, "xaxis.range": span(rows), "height": height_of(whole[1] - whole[0], pixels)},
        )
    ]
    for title, found in by_kind(rows).items():
        heights = [places[row.key] for row in found]
        shown = [min(heights) - 0.55, max(heights) + 1.2]
        height = height_of(shown[1] - shown[0], max(34, pixels))
        choices.append(Choice(title, {}, {"yaxis.range": shown, "xaxis.range": span(found), "height": height}))
    return choices


def marks(
    position: int, run: Run, name: str, symbol: str, rows: list[ScoreRow], heights: list[float]
) -> dict[str, Any]:
    """One run's scores at one number of shots, each with one standard error to each side."""
    cells = [row.cells[run.name] for row in rows]
    errors = [row.scaled(c.stderr) if c.stderr is not None else 0 for row, c in zip(rows, cells, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [row.scaled(cell.score) for row, cell in zip(rows, cells, strict=True)],
        "y": heights,
        "error_x": {"type": "data", "array": errors, "thickness": 1.5, "width": 0, "color": colour(position)},
        "marker": {
            "color": colour(position),
            "size": 9,
            "symbol": symbol,
            "line": {"width": 2, "color": colour(position)},
        },
        "text": [
            f"{label(row.task)}, {label(row.measure)}, {shots_words(row.shots)}<br>{score_words(row, cell)}"
            for row, cell in zip(rows, cells, strict=True)
        ],
        "hovertemplate": hovering("%{text}"),
    }


def chance_marks(levels: list[tuple[int, float]]) -> dict[str, Any]:
    """A dotted mark at each task's place where guessing would score."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "chance",
        "x": [x for _, level in levels for x in (level, level, None)],
        "y": [y for place, _ in levels for y in (place - 0.42, place + 0.42, None)],
        "line": {"color": GREY, "width": 2, "dash": "dot"},
        "hoverinfo": "skip",
    }


def task_axis(names: dict[Name, ScoreRow], places: dict[Name, int], shown: list[float]) -> dict[str, Any]:
    """The tasks from top to bottom; a task with several measures names them."""
    tasks = [task for task, *_ in names]
    ticks = [label(f"{row.task} ({row.measure})" if tasks.count(row.task) > 1 else row.task) for row in names.values()]
    return axis("", tickvals=[places[name] for name in names], ticktext=ticks, range=shown, showgrid=False, ticks="")


def separator(height: float) -> dict[str, Any]:
    rule = {"color": "rgba(134,140,148,0.25)", "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": rule}


def heading(title: str, height: float) -> dict[str, Any]:
    """A kind's title above its tasks, at the left."""
    place = {"xref": "paper", "yref": "y", "x": 0, "y": height, "xanchor": "left", "yanchor": "middle"}
    return {"text": f"<b>{label(title)}</b>", "showarrow": False, **place}


def read_scores(runs: list[Run], rows: list[ScoreRow]) -> str:
    """How many scores stand out from chance, and from the other run's, and how many would by luck."""
    parts: list[str] = []
    counted: list[int] = []
    for run in runs:
        own = [row for row in rows if row.chance is not None and run.name in row.cells]
        if not own:
            continue
        above = sum(row.above_chance(run.name) for row in own)
        tested = [row.cells[run.name].p_chance is not None for row in own]
        words = "is above chance (p < 0.05)" if all(tested) else "is more than two standard errors above chance"
        if any(tested) and not all(tested):
            words = "is above chance (p < 0.05, or by more than two standard errors)"
        words = words if not parts else "is so"
        parts.append(f"{run.name} {words} in {above or 'none'} of {len(own)} scores")
        counted.append(len(own))
    if len(runs) == 2:
        first, second = runs
        shared = [(row.cells[first.name], row.cells[second.name]) for row in rows if len(row.cells) == 2]
        apart = [
            a.score > b.score
            for a, b in shared
            if abs(a.score - b.score) > 2 * math.hypot(a.stderr or 0, b.stderr or 0)
        ]
        leads = [(first, second, sum(apart)), (second, first, len(apart) - sum(apart))]
        for winner, loser, count in leads:
            if count:
                parts.append(
                    f"{winner.name} leads {loser.name} by more than two standard errors in {count} of {len(shared)}"
                )
        if shared and not apart:
            parts.append("the two runs differ by more than two standard errors in none")
    if not parts:
        return "The scores state no chance level to be compared with."
    # Two-sided tests at 5 % take a fortieth of the guesses to be above chance.
    luck = f" By luck alone about {round(max(counted) / 40)} would be." if max(counted, default=0) >= 20 else ""
    return "; ".join(parts) + "." + luck
