"""Scores during training: what the evaluations in the loop found, against the tokens trained on."""

import math

from pipeline.reporting.figures.figure import Figure
from pipeline.reporting.figures.panels import Panel, Panels, chance_line, note_of, panel_layout, scored_line
from pipeline.reporting.quantities import and_list, percent, si
from pipeline.reporting.records import number
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import Cell, ScoreRow, principal, row_of, shots_words, whole

Curve = list[tuple[float, Cell]]
"""A run's scores by tokens."""


def in_training(runs: list[Run]) -> Panels | None:
    """A panel for each task, measure and number of examples that was scored during training."""
    found = curves(runs)
    if not found:
        return None
    leading = principal([row for row, _ in found])
    shown: list[Panel] = []
    others: list[Panel] = []
    for order, (row, by_run) in enumerate(found):
        panel = Panel(
            title=f"{row.task}, {shots_words(row.shots)}",
            note=note_of(row),
            figure=training_figure(f"training-{order}", runs, row, by_run),
        )
        (shown if leading[row.task] == row.key else others).append(panel)
    named = {name for _, by_run in found for name in by_run}
    compared = [(row, by_run) for row, by_run in found if leading[row.task] == row.key]
    return Panels(
        panels=shown,
        others=others,
        runs=[run for run in runs if run.name in named],
        legend=["┄ chance"] if any(row.chance is not None for row, _ in found) else [],
        reading=read_training(runs, compared),
    )


def curves(runs: list[Run]) -> list[tuple[ScoreRow, dict[str, Curve]]]:
    """Each score of the evaluations in the loop with its course in each run, where tokens are known."""
    scores: dict[tuple[str, str, str, int], list] = {}
    courses: dict[tuple[str, str, str, int], dict[str, Curve]] = {}
    for run in runs:
        for record in run.in_loop:
            tokens = number(record.get("tokens"))
            if tokens is None:
                continue
            for score in record["scores"]:
                scoring = "paper" if score.get("scoring") == "paper" else "harness"
                key = (str(score["task"]), str(score.get("metric", "")), scoring, whole(score.get("shots")) or 0)
                scores.setdefault(key, []).append((run, score))
                cell = row_of(key, [(run, score)]).cells[run.name]
                courses.setdefault(key, {}).setdefault(run.name, []).append((tokens, cell))
    return [(row_of(key, scores[key]), courses[key]) for key in scores]


def training_figure(name: str, runs: list[Run], row: ScoreRow, by_run: dict[str, Curve]) -> Figure:
    places = [tokens for course in by_run.values() for tokens, _ in course]
    traces = chance_line(row, places)
    for position, run in enumerate(runs):
        if course := by_run.get(run.name):
            words = [f"{si(tokens)} tokens" for tokens, _ in course]
            traces.append(
                scored_line(position, run, [x for x, _ in course], [(row, cell) for _, cell in course], words)
            )
    figure_layout = panel_layout({"exponentformat": "B", "nticks": 5, "rangemode": "tozero"}, {})
    return Figure(name, traces, figure_layout, read_training(runs, [(row, by_run)]))


def read_training(runs: list[Run], found: list[tuple[ScoreRow, dict[str, Curve]]]) -> str:
    """How many scores training moved, by run, and what the evaluations cost of its time."""
    parts, costs = [], []
    for run in runs:
        courses = [(row, by_run[run.name]) for row, by_run in found if len(by_run.get(run.name, [])) > 1]
        if courses:
            moved = [change(row, course) for row, course in courses]
            words = (
                run.name if parts else f"From first to last evaluation {run.name} gains more than two standard errors"
            )
            words += f" in {moved.count(1) or 'none'} of {len(courses)} score{'s' * (len(courses) > 1)}"
            parts.append(words + (f" and loses them in {moved.count(-1)}" if -1 in moved else ""))
        if run.in_loop and (share := number(run.in_loop[-1].get("share"))) is not None:
            costs.append(f"{percent(share)} of the time of {run.name}")
    sentence = "; ".join(parts) if parts else "No score was taken more than once so far"
    return sentence + "." + (f" The evaluations took {and_list(costs)}." if costs else "")


def change(row: ScoreRow, course: Curve) -> int:
    """1 where the last score is better than the first by more than two standard errors, -1 where worse, else 0."""
    first, last = course[0][1], course[-1][1]
    difference = last.score - first.score
    if abs(difference) <= 2 * math.hypot(first.stderr or 0, last.stderr or 0):
        return 0
    return 1 if (difference > 0) == row.higher_is_better else -1
