"""The scores of an evaluation as a flat table and as single values, for trackers that show them beside the curves."""

from typing import Any

from pipeline.reporting.records import dig, number

COLUMNS = (
    "task", "kind", "shots", "metric", "scoring", "score", "stderr", "spread", "chance", "p_chance", "n", "truncated", "shots_cut",
    "clean", "dirty", "dirty_share", "ngram", "against", "difference", "difference_p", "published",
)  # fmt: skip


def score_table(scores: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, one a score, of results.json's scores; what is unknown is None."""
    return [*COLUMNS], [[cell(score, column) for column in COLUMNS] for score in scores]


def cell(score: dict[str, Any], column: str) -> Any:
    nested = {
        "clean": ("clean", "score"),
        "dirty": ("dirty", "score"),
        "against": ("against", "run"),
        "difference": ("against", "difference"),
        "difference_p": ("against", "p"),
    }
    if column == "published":
        published = score.get(column)
        entries = [entry for entry in published if isinstance(entry, dict)] if isinstance(published, list) else []
        return (
            "; ".join(f"{entry.get('model')} {entry.get('score')} ({entry.get('shots')}-shot)" for entry in entries)
            or None
        )
    value = dig(score, *nested.get(column, (column,)))
    return value if isinstance(value, str) else number(value)


def score_summary(scores: list[dict[str, Any]], prefix: str = "evaluation/") -> dict[str, float]:
    """Each score by a name of its own: evaluation/TASK/METRIC@SHOTS, with "paper" before the metric for the paper's scoring."""
    return {
        f"{prefix}{score['task']}/{'paper/' if score.get('scoring') == 'paper' else ''}{score.get('metric')}@{score.get('shots')}": value
        for score in scores
        if score.get("task") and (value := number(score.get("score"))) is not None
    }
