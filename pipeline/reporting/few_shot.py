"""The report's part on few-shot scores: its figures, its tables, and what the models wrote."""

from collections import Counter
from dataclasses import dataclass

from pipeline.reporting.collisions import Collision, collisions, facts, unknown
from pipeline.reporting.figures import scores as overview_figure
from pipeline.reporting.figures.contamination import contamination, contamination_rows, read_contamination
from pipeline.reporting.figures.figure import Figure
from pipeline.reporting.figures.in_training import in_training
from pipeline.reporting.figures.panels import Panels
from pipeline.reporting.figures.shots import against_shots
from pipeline.reporting.figures.sizes import against_parameters
from pipeline.reporting.quantities import MISSING, SPACE, digits
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import Cell, Published, ScoreRow, by_kind, p_words, score_rows, shots_words
from pipeline.reporting.written import TaskAnswers, written


@dataclass(frozen=True)
class PanelSection:
    name: str
    title: str
    lead: str
    panels: Panels


@dataclass(frozen=True)
class ScoreCell:
    """A cell of the table of scores: the score, its error, and what else is known of it, a line each."""

    score: str
    error: str
    notes: list[str]
    leading: bool


@dataclass(frozen=True)
class TableRow:
    task: str
    task_span: int
    """Rows that the task's name stands for; 0 below its first."""
    measure: str
    measure_span: int
    shots: int
    n: str
    chance: str
    cells: list[ScoreCell | None]
    """One for each run."""
    published: list[tuple[str, str]]
    """Model and score, and what it was measured on."""


@dataclass(frozen=True)
class Contamination:
    figure: Figure | None
    reading: str
    unknown: list[str]
    facts: list[tuple[Run, list[tuple[str, str]]]]
    rows: list[tuple[Run, list[str], bool]]
    collisions: list[Collision]


@dataclass(frozen=True)
class FewShot:
    """Everything about few-shot scores beside the overview; what is empty is not shown."""

    panels: list[PanelSection]
    contamination: Contamination | None
    table: dict[str, list[TableRow]]
    """By the title of their kind."""
    with_published: bool
    written: list[TaskAnswers]

    @property
    def drawn(self) -> bool:
        return bool(self.panels) or (self.contamination is not None and self.contamination.figure is not None)


def overview(runs: list[Run]) -> Figure | None:
    return overview_figure.few_shot(runs, score_rows(runs))


def of_runs(runs: list[Run]) -> FewShot:
    rows = score_rows(runs)
    return FewShot(
        panels=panel_sections(runs, rows),
        contamination=contaminated(runs, rows),
        table={title: table_rows(found, runs) for title, found in by_kind(rows).items()},
        with_published=any(row.published for row in rows),
        written=written(runs),
    )


def panel_sections(runs: list[Run], rows: list[ScoreRow]) -> list[PanelSection]:
    sections = [
        (
            "shots",
            "Scores by number of examples",
            "Across: solved examples in the prompt, each doubling equally wide. Up: the score. Bars are one standard "
            "error to each side.",
            against_shots(runs, rows),
        ),
        (
            "sizes",
            "Scores by parameters",
            "Across: all parameters of a run, logarithmic. Up: the score. Lines join runs of one family with the same "
            "number of examples.",
            against_parameters(runs, rows),
        ),
        (
            "training",
            "Scores during training",
            "Across: trained tokens. Up: the score of the evaluation in the training loop, which may ask fewer questions.",
            in_training(runs),
        ),
    ]
    return [PanelSection(name, title, lead, panels) for name, title, lead, panels in sections if panels]


def contaminated(runs: list[Run], rows: list[ScoreRow]) -> Contamination | None:
    table = contamination_rows(runs, rows)
    if not table:
        return None
    looked = [(run, facts(run)) for run in runs]
    return Contamination(
        figure=contamination(runs, rows),
        reading=read_contamination(runs, rows),
        unknown=[f"{run.name}: {reason}." for run in runs if (reason := unknown(run))],
        facts=[(run, known) for run, known in looked if known],
        rows=table,
        collisions=collisions(runs),
    )


def table_rows(rows: list[ScoreRow], runs: list[Run]) -> list[TableRow]:
    tasks, measures = Counter(row.task for row in rows), Counter(row.key for row in rows)
    return [
        TableRow(
            task=row.task,
            task_span=tasks.pop(row.task, 0),
            measure=row.measure,
            measure_span=measures.pop(row.key, 0),
            shots=row.shots,
            n=MISSING if row.n is None else str(row.n),
            chance=row.words(row.chance),
            cells=[score_cell(row, run.name) for run in runs],
            published=[published_cell(row, entry) for entry in row.published],
        )
        for row in rows
    ]


def score_cell(row: ScoreRow, name: str) -> ScoreCell | None:
    cell = row.cells.get(name)
    if cell is None:
        return None
    return ScoreCell(
        score=row.words(cell.score),
        error="" if cell.stderr is None else f"± {row.words(cell.stderr)}",
        notes=notes(row, cell),
        leading=row.above_chance(name),
    )


def notes(row: ScoreRow, cell: Cell) -> list[str]:
    found = []
    if cell.p_chance is not None:
        found.append(f"chance: {p_words(cell.p_chance)}")
    if cell.spread is not None and len(cell.seed_scores) > 1:
        found.append(f"{len(cell.seed_scores)} seeds: ± {row.words(cell.spread)}")
    if (other := cell.against) is not None:
        words = f"{row.words(other.difference, signed=True)} to {other.run}"
        if other.low is not None and other.high is not None:
            low, high = (row.words(end, signed=True).removesuffix(f"{SPACE}%") for end in (other.low, other.high))
            words += f" [{low}, {high}]"
        found.append(words + (f", {p_words(other.p)}" if other.p is not None else ""))
    if cell.shots_cut:
        mean = f", mean {digits(cell.shots_mean, 2)}" if cell.shots_mean is not None else ""
        found.append(f"fewer shots in {cell.shots_cut}{mean}")
    if cell.truncated:
        found.append(f"{cell.truncated} cut on the left")
    return found


def published_cell(row: ScoreRow, entry: Published) -> tuple[str, str]:
    measured = " ".join(filter(None, [entry.split, f"({entry.n})" if entry.n is not None else ""]))
    full = "full set, as ours" if entry.comparable else "full set, not as ours"
    words = ", ".join(filter(None, [shots_words(entry.shots), measured, full]))
    return f"{entry.model} {row.words(entry.score)}", words
