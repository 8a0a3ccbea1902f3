"""Scores against the number of parameters, over the runs of a folder (Brown et al. 2020, Figures 3.1 to 3.11)."""

import math
from typing import Any

from pipeline.reporting.figures.figure import GREY, Figure, colour, hovering, label
from pipeline.reporting.figures.panels import (
    Models,
    Panel,
    Panels,
    chance_line,
    note_of,
    panel_layout,
    published_marks,
    score_words,
)
from pipeline.reporting.quantities import si
from pipeline.reporting.records import number
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import Cell, ScoreRow, principal, shots_words

MARKS = (("circle-open", "○", "dot"), ("circle", "●", "solid"), ("diamond", "◆", "dash"))
"""Symbol, the same as a letter, and dash, by the place of a number of examples among those shown."""


ANOTHER_SIZE = 1.25
"""Runs whose parameters differ by less than this factor were meant to be of one size."""


def parameters(run: Run) -> float | None:
    found = number(run.get("parameters", "total"))
    return found if found and found > 0 else None


def against_parameters(runs: list[Run], rows: list[ScoreRow]) -> Panels | None:
    """A panel for each task that runs of two or more sizes were scored on with the same number of examples."""
    sized = {run.name: size for run in runs if (size := parameters(run))}
    leading, models = principal(rows), Models()
    by_task: dict[str, list[ScoreRow]] = {}
    for row in rows:
        sizes = [sized[name] for name in row.cells if name in sized]
        if leading[row.task] == row.key and sizes and max(sizes) > ANOTHER_SIZE * min(sizes):
            by_task.setdefault(row.task, []).append(row)
    if not by_task:
        return None
    chosen = {task: chosen_counts(found) for task, found in by_task.items()}
    marks = {task: mark_words(found) for task, found in chosen.items()}
    # What is the same in all panels is said once, above them.
    shared = next(iter(marks.values())) if len({*marks.values()}) == 1 else ""
    panels = [
        Panel(
            title=task,
            note=note_of(found[0]) + ("" if shared else f"; {marks[task]}"),
            figure=size_figure(f"sizes-{order}", runs, sized, found, models),
        )
        for order, (task, found) in enumerate(chosen.items())
    ]
    named = {name for found in by_task.values() for row in found for name in row.cells if name in sized}
    chance = any(row.chance is not None for found in by_task.values() for row in found)
    return Panels(
        panels=panels,
        others=[],
        runs=[run for run in runs if run.name in named],
        legend=[words for words in (shared, "┄ chance" if chance else "", *models.legend) if words],
        reading=read_sizes(sized, [found[-1] for found in chosen.values()]),
    )


def mark_words(rows: list[ScoreRow]) -> str:
    return ", ".join(
        f"{MARKS[k][1]}\u00a0{shots_words(row.shots)}".replace("-", "\u2011") for k, row in enumerate(rows)
    )


def chosen_counts(rows: list[ScoreRow]) -> list[ScoreRow]:
    """The rows with the fewest and the most examples and, as the paper has it, the one-shot one between them."""
    ordered = sorted(rows, key=lambda row: row.shots)
    between = [row for row in ordered[1:-1] if row.shots == 1]
    return [ordered[0], *between, ordered[-1]] if len(ordered) > 1 else ordered


def size_figure(name: str, runs: list[Run], sized: dict[str, float], rows: list[ScoreRow], models: Models) -> Figure:
    published = {entry: size for row in rows for entry in row.published if (size := entry.parameters) is not None}
    places = [*(sized[name] for row in rows for name in row.cells if name in sized), *published.values()]
    traces = chance_line(rows[0], places)
    traces += published_marks(rows[0], models, [(size, entry) for entry, size in published.items()])
    families = dict.fromkeys(str(run.get("family")) for run in runs)
    for k, row in enumerate(rows):
        for family in families:
            members = [
                (sized[run.name], position, run, row.cells[run.name])
                for position, run in enumerate(runs)
                if run.name in row.cells and run.name in sized and str(run.get("family")) == family
            ]
            if members:
                traces.append(size_line(row, k, family, sorted(members, key=lambda member: member[:2])))
    ticks = round_sizes(min(places), max(places))
    x_axis = {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{size:g}{letter}" for size, letter in map(si_parts, ticks)],
    }
    return Figure(name, traces, panel_layout(x_axis, {}), read_sizes(sized, [rows[-1]]))


def round_sizes(low: float, high: float) -> list[float]:
    """Round sizes for the ticks from low to high: powers of ten where they suffice, else 1, 2 and 5 of each."""
    decades = [10.0**power for power in range(2, 15)]
    whole = [size for size in decades if low / 1.2 <= size <= high * 1.2]
    if len(whole) > 1:
        return whole
    return [digit * size for size in decades for digit in (1, 2, 5) if low / 1.2 <= digit * size <= high * 1.2]


def si_parts(size: float) -> tuple[float, str]:
    """A round size without what `si` adds to show its digits: 5M, not 5.00 M."""
    return next(
        ((size / unit, letter) for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if size >= unit),
        (size, ""),
    )


def size_line(row: ScoreRow, k: int, family: str, members: list[tuple[float, int, Run, Cell]]) -> dict[str, Any]:
    """The runs of one family at one number of examples, by size, each mark in its run's colour."""
    symbol, _, dashes = MARKS[k]
    colours = [colour(position) for _, position, _, _ in members]
    errors = [row.scaled(cell.stderr) if cell.stderr is not None else 0 for *_, cell in members]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(f"{family.replace('_', ' ')}, {shots_words(row.shots)}"),
        "x": [size for size, *_ in members],
        "y": [row.scaled(cell.score) for *_, cell in members],
        "line": {"color": GREY, "width": 1.2, "dash": dashes},
        "marker": {"size": 8, "symbol": symbol, "color": colours, "line": {"width": 2, "color": colours}},
        "error_y": {"type": "data", "array": errors, "thickness": 1.2, "width": 0, "color": GREY},
        "text": [f"{label(run.name)}, {si(size)}<br>{score_words(row, cell)}" for size, _, run, cell in members],
        "hovertemplate": hovering("%{text}"),
    }


def read_sizes(sized: dict[str, float], rows: list[ScoreRow]) -> str:
    """In how many tasks the largest run is the best, and by more than two standard errors better than the smallest."""
    rising = best_is_largest = 0
    for row in rows:
        names = sorted((name for name in row.cells if name in sized), key=sized.__getitem__)
        cells = [row.cells[name] for name in names]
        signed = [cell.score if row.higher_is_better else -cell.score for cell in cells]
        rising += signed[-1] - signed[0] > 2 * math.hypot(cells[0].stderr or 0, cells[-1].stderr or 0)
        best_is_largest += signed[-1] == max(signed)
    of = f"{len(rows)} task{'s' * (len(rows) > 1)}"
    return (
        f"With its most examples the largest run is better than the smallest by more than two standard errors in "
        f"{rising or 'none'} of {of}, and the best of all sizes in {best_is_largest or 'none'}."
    )
