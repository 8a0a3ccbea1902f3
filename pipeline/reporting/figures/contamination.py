"""Scores on all, on clean and on dirty questions: what a model owes to having seen the answers (Brown et al. 2020, section 4)."""

import math
from typing import Any

from pipeline.reporting.figures.figure import Figure, axis, colour, hovering, label, layout
from pipeline.reporting.quantities import MISSING, and_list, percent
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import Cell, Part, ScoreRow, principal, shots_words

PARTS = (("all", "circle", "●"), ("clean", "circle-open", "○"), ("dirty", "x", "✕"))


def marked_rows(rows: list[ScoreRow]) -> list[ScoreRow]:
    """The rows of which some run knows clean questions from dirty ones."""
    return [row for row in rows if any(cell.marked for cell in row.cells.values())]


def contamination(runs: list[Run], rows: list[ScoreRow]) -> Figure | None:
    """Each task's scores on all, clean and dirty questions with its most examples; only where some questions are dirty."""
    leading = principal(rows)
    chosen: dict[str, ScoreRow] = {}
    for row in marked_rows(rows):
        has_both = any(cell.clean and cell.dirty for cell in row.cells.values())
        held = chosen.get(row.task)
        if row.unit and leading[row.task] == row.key and has_both and (held is None or row.shots > held.shots):
            chosen[row.task] = row
    if not chosen:
        return None
    shown = list(chosen.values())
    scored = [(k, run) for k, run in enumerate(runs) if any(marked(row, run) for row in shown)]
    lanes = len(scored)
    places = {row.task: len(shown) - k for k, row in enumerate(shown)}
    step = 0.7 / lanes
    traces = []
    for lane, (position, run) in enumerate(scored):
        entries = [
            (row, row.cells[run.name], places[row.task] + 0.35 - (lane + 0.5) * step)
            for row in shown
            if marked(row, run)
        ]
        traces += [part_marks(position, run, part, entries) for part in PARTS]
    return Figure(
        name="contamination",
        traces=traces,
        layout=layout(
            140 + len(shown) * max(30, 16 * lanes),
            xaxis=axis("Score (% or points)", rangemode="tozero"),
            yaxis=axis(
                "",
                tickvals=list(places.values()),
                ticktext=[label(f"{row.task}, {shots_words(row.shots)}") for row in shown],
                range=[0.45, len(shown) + 0.55],
                showgrid=False,
                ticks="",
            ),
        ),
        reading=read_contamination(runs, rows),
    )


def marked(row: ScoreRow, run: Run) -> bool:
    cell = row.cells.get(run.name)
    return cell is not None and cell.clean is not None and cell.dirty is not None


def part_marks(
    position: int, run: Run, part: tuple[str, str, str], entries: list[tuple[ScoreRow, Cell, float]]
) -> dict[str, Any]:
    """One run's scores on one part of the questions, each with one standard error to each side."""
    name, symbol, _ = part
    found = [(row, part_of(cell, name), height) for row, cell, height in entries]
    known = [(row, value, height) for row, value, height in found if value is not None]
    errors = [row.scaled(value.stderr) if value.stderr is not None else 0 for row, value, _ in known]
    ink = colour(position)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(f"{run.name}, {name}"),
        "x": [row.scaled(value.score) for row, value, _ in known],
        "y": [height for *_, height in known],
        "error_x": {"type": "data", "array": errors, "thickness": 1.2, "width": 0, "color": ink},
        "marker": {"color": ink, "size": 9, "symbol": symbol, "line": {"width": 2, "color": ink}},
        "text": [f"{label(row.task)}, {label(row.measure)}<br>{part_words(row, value)}" for row, value, _ in known],
        "hovertemplate": hovering("%{text}"),
    }


def part_of(cell: Cell, name: str) -> Part | None:
    return {"clean": cell.clean, "dirty": cell.dirty}.get(name, Part(cell.score, cell.stderr, cell.n))


def part_words(row: ScoreRow, part: Part | None) -> str:
    if part is None:
        return MISSING
    error = f" ± {row.words(part.stderr)}" if part.stderr is not None else ""
    return row.words(part.score) + error + (f" ({part.n})" if part.n is not None else "")


def apart(cell: Cell) -> bool:
    """Whether clean and dirty questions differ by more than two standard errors of their difference."""
    if not cell.clean or not cell.dirty or cell.clean.stderr is None or cell.dirty.stderr is None:
        return False
    return abs(cell.dirty.score - cell.clean.score) > 2 * math.hypot(cell.clean.stderr, cell.dirty.stderr)


def contamination_rows(runs: list[Run], rows: list[ScoreRow]) -> list[tuple[Run, list[str], bool]]:
    """The table: for each run and score the cells, and whether its clean and dirty questions differ beyond their error."""
    table = []
    for row in marked_rows(rows):
        for run in runs:
            cell = row.cells.get(run.name)
            if cell is None or not cell.marked:
                continue
            difference = (
                row.words(cell.dirty.score - cell.clean.score, signed=True) if cell.clean and cell.dirty else MISSING
            )
            table.append(
                (
                    run,
                    [
                        row.task,
                        str(row.shots),
                        row.measure,
                        MISSING if cell.ngram is None else str(cell.ngram),
                        percent(cell.dirty_share),
                        part_words(row, Part(cell.score, cell.stderr, cell.n)),
                        part_words(row, cell.clean),
                        part_words(row, cell.dirty),
                        difference,
                    ],
                    apart(cell),
                )
            )
    return table


def read_contamination(runs: list[Run], rows: list[ScoreRow]) -> str:
    """How many questions were in the training data, where most, and where that shows in the scores."""
    found, sentences = marked_rows(rows), []
    for run in runs:
        shares = {
            row.task: share
            for row in found
            if (cell := row.cells.get(run.name)) and (share := dirty_share(cell)) is not None
        }
        if not shares:
            continue
        tasks = f"{len(shares)} task{'s' * (len(shares) > 1)}"
        dirty = {task: share for task, share in shares.items() if share > 0}
        if not dirty:
            sentences.append(f"None of the questions of {tasks} overlap with what {run.name} was trained on.")
            continue
        worst = max(dirty, key=dirty.__getitem__)
        words = (
            f"Of {tasks}, {len(dirty)} hold questions that overlap with what {run.name} was trained on, "
            f"most of all {worst} ({percent(dirty[worst])})"
        )
        differing = list(dict.fromkeys(row.task for row in found if (c := row.cells.get(run.name)) and apart(c)))
        if differing:
            words += f"; the dirty ones score otherwise than the clean by more than two standard errors in {and_list(differing)}"
        else:
            words += "; in none do dirty and clean ones differ by more than two standard errors"
        sentences.append(words + ".")
    return " ".join(sentences) or "No question could be looked up in the training data."


def dirty_share(cell: Cell) -> float | None:
    if cell.dirty_share is not None:
        return cell.dirty_share
    clean, dirty = (part.n if part else 0 for part in (cell.clean, cell.dirty))
    return None if clean is None or dirty is None or not clean + dirty else dirty / (clean + dirty)
