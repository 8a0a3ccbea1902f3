"""Scores against the number of examples in the prompt (Brown et al. 2020, Figure 1.2)."""

import math

from pipeline.reporting.figures.figure import Figure
from pipeline.reporting.figures.panels import (
    Models,
    Panel,
    Panels,
    chance_line,
    note_of,
    panel_layout,
    published_marks,
    score_words,
    scored_line,
    seed_marks,
)
from pipeline.reporting.quantities import and_list
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import Cell, Published, ScoreRow, principal, shots_words


def place(shots: float) -> float:
    """Where a number of examples stands on the axis: doublings equally far apart, and 0 one such step before 1."""
    return 1 + math.log2(shots) if shots >= 1 else float(shots)


def against_shots(runs: list[Run], rows: list[ScoreRow]) -> Panels | None:
    """A panel for each task and measure that was scored with several numbers of examples."""
    sweeps: dict[tuple[str, str, str], list[ScoreRow]] = {}
    for row in rows:
        sweeps.setdefault(row.key, []).append(row)
    sweeps = {key: sweep for key, sweep in sweeps.items() if len({row.shots for row in sweep}) > 1}
    if not sweeps:
        return None
    leading, models = principal(rows), Models()
    shown: list[Panel] = []
    others: list[Panel] = []
    for number, (key, sweep) in enumerate(sweeps.items()):
        figure = sweep_figure(f"shots-{number}", runs, sweep, models)
        panel = Panel(sweep[0].task, note_of(sweep[0]), figure)
        (shown if leading[key[0]] == key else others).append(panel)
    compared = [sweep for key, sweep in sweeps.items() if leading[key[0]] == key]
    named = {name for sweep in sweeps.values() for row in sweep for name in row.cells}
    return Panels(
        panels=shown,
        others=others,
        runs=[run for run in runs if run.name in named],
        legend=legend(list(sweeps.values()), models),
        reading=read_shots(runs, compared),
    )


def legend(sweeps: list[list[ScoreRow]], models: Models) -> list[str]:
    rows = [row for sweep in sweeps for row in sweep]
    words = ["┄ chance"] if any(row.chance is not None for row in rows) else []
    if any(len(cell.seed_scores) > 1 for row in rows for cell in row.cells.values()):
        words.append("small dots: single seeds")
    return words + models.legend


def sweep_figure(name: str, runs: list[Run], sweep: list[ScoreRow], models: Models) -> Figure:
    published: dict[Published, float] = {
        entry: place(row.shots if entry.shots is None else entry.shots) for row in sweep for entry in row.published
    }
    places = [*(place(row.shots) for row in sweep), *published.values()]
    traces = chance_line(sweep[-1], places)
    traces += published_marks(sweep[0], models, [(x, entry) for entry, x in published.items()])
    for position, run in enumerate(runs):
        points = [(row, row.cells[run.name]) for row in sweep if run.name in row.cells]
        if not points:
            continue
        x = [place(row.shots) for row, _ in points]
        if seeds := seed_marks(position, run, x, points):
            traces.append(seeds)
        traces.append(scored_line(position, run, x, points, [shots_words(row.shots) for row, _ in points]))
    counts = sorted({*(row.shots for row in sweep), *(entry.shots for entry in published if entry.shots is not None)})
    x_axis = {"tickvals": [place(count) for count in counts], "ticktext": tick_words(counts)}
    x_axis["range"] = [min(places) - 0.3, max(places) + 0.3]
    return Figure(name, traces, panel_layout(x_axis, {}), read_sweep(runs, sweep))


def tick_words(counts: list[int]) -> list[str]:
    """The counts that have room; the last always has."""
    shown: list[str] = []
    span = place(counts[-1]) - place(counts[0])
    last = math.inf
    for count in reversed(counts):
        roomy = last - place(count) >= span / 9
        shown.append(str(count) if roomy else "")
        last = place(count) if roomy else last
    return shown[::-1]


def ends(run: Run, sweep: list[ScoreRow]) -> tuple[ScoreRow, Cell, ScoreRow, Cell] | None:
    """A run's scores with its fewest and with its most examples; None where it has only one number of them."""
    own = sorted((row for row in sweep if run.name in row.cells), key=lambda row: row.shots)
    if len(own) < 2:
        return None
    return own[0], own[0].cells[run.name], own[-1], own[-1].cells[run.name]


def gain(run: Run, sweep: list[ScoreRow]) -> int | None:
    """1 where the most examples score better than the fewest by more than two standard errors, -1 where worse, else 0."""
    found = ends(run, sweep)
    if found is None:
        return None
    (row, few, _, most), difference = found, found[3].score - found[1].score
    if abs(difference) <= 2 * math.hypot(few.stderr or 0, most.stderr or 0):
        return 0
    return 1 if (difference > 0) == row.higher_is_better else -1


def read_sweep(runs: list[Run], sweep: list[ScoreRow]) -> str:
    """A panel in words, for those who do not see it."""
    parts = [
        f"{run.name}: {shots_words(row.shots)} {score_words(row, row.cells[run.name]).replace('<br>', ', ')}"
        for run in runs
        for row in sweep
        if run.name in row.cells
    ]
    return "; ".join(parts)


def read_shots(runs: list[Run], sweeps: list[list[ScoreRow]]) -> str:
    """Where more examples help and where they harm, by run; and where they did not fit."""
    parts = []
    for run in runs:
        gains = [found for sweep in sweeps if (found := gain(run, sweep)) is not None]
        if not gains:
            continue
        better, worse, tasks = gains.count(1), gains.count(-1), f"{len(gains)} task{'s' * (len(gains) > 1)}"
        words = (
            f"they help {run.name}" if parts else f"the most examples help {run.name} by more than two standard errors"
        )
        parts.append(f"{words} in {better or 'none'} of {tasks}" + (f" and harm it in {worse}" if worse else ""))
    sentence = ("; ".join(parts) or "No run has a task with several numbers of examples") + "."
    cut = list(
        dict.fromkeys(row.task for sweep in sweeps for row in sweep if any(c.shots_cut for c in row.cells.values()))
    )
    if cut:
        named = and_list(cut) if len(cut) <= 4 else f"{len(cut)} tasks"
        sentence += f" In {named} not all examples fitted the context, so there the axis names more than the model saw."
    return sentence[0].upper() + sentence[1:]
