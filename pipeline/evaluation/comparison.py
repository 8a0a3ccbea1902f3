"""Two runs on the same questions: which is better, and could the questions alone have made it so?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.tasks.manager import TaskDict

from data_prep.files import InputError
from pipeline.evaluation import paper_scores, protocol
from pipeline.evaluation.statistics import paired_bootstrap


def sample_file(folder: Path, task: str, shots: int, seed: int | None = None) -> Path:
    """Where the questions and answers of a score stand.

    Args:
        seed: of the draw of examples; None for the first.
    """
    return folder / f"{task.replace('/', '_')}@{shots}{'' if seed is None else f',seed={seed}'}.jsonl"


def samples_folder(run: Path) -> Path:
    """The folder of a run's answers.

    Raises:
        InputError: it has not been evaluated.
    """
    folder = run / "evaluation" / "samples"
    if not folder.is_dir():
        raise InputError(
            f"{run} has no scores to compare with: evaluate it on the same tasks first (evaluate --run {run})."
        )
    return folder


def compare(rows: list[dict[str, Any]], output: dict[str, Any], loaded: TaskDict, other: Path, name: str) -> list[str]:
    """Set `against` in each row for which another run answered the same questions.

    Args:
        other: the folder of that run's answers.
        name: what it is called.

    Returns:
        For each task without such answers a sentence.
    """
    remarks = {}
    for row in rows:
        task, samples = loaded["tasks"].get(row["task"]), output["samples"].get(row["task"])
        if task is None or not samples:
            continue
        path = sample_file(other, row["task"], row["shots"])
        label = f"{row['task']}, {row['shots']}-shot"
        if not path.is_file():
            remarks[label] = f"{label}: {name} has no answers to compare with ({path.name} is not there)"
            continue
        theirs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if [line.get("question") for line in theirs] != [sample["question"] for sample in samples]:
            remarks[label] = f"{label}: {name} answered other questions; evaluate both with the same --limit and data"
            continue
        metric, _, filtered = row["metric"].partition(",")
        filtered = filtered or (paper_scores.FILTER if row["scoring"] == "paper" else "none")
        their_values = protocol.values_of(theirs, metric, filtered)
        our_values = protocol.values_of(samples, metric, filtered)
        if len(our_values) != len(their_values) or not our_values:
            remarks[label] = f"{label}: {name} was not scored in {row['metric']} on the same questions"
            continue
        difference = paired_bootstrap(our_values, their_values, protocol.aggregate_of(task, metric, our_values))
        row["against"] = {"run": name, "score": row["score"] - difference.difference, **asdict(difference)}
    return list(remarks.values())
