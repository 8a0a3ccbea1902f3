"""What published models of the smallest size score on the same tasks, and whether a score may be put beside theirs."""

import functools
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.task import Task

from pipeline.evaluation.tasks import of_paper

TABLE = Path(__file__).with_name("published.yaml")
# The harness's own tasks that the papers report, by their names there; shipped tasks say it in metadata.paper.results.
HARNESS_NAMES = {
    "hellaswag": "hellaswag", "lambada_openai": "lambada", "lambada_standard": "lambada", "nq_open": "natural_questions",
    "triviaqa": "triviaqa", "webqs": "webqs", "piqa": "piqa", "arc_easy": "arc_easy", "arc_challenge": "arc_challenge",
    "openbookqa": "openbookqa", "winogrande": "winogrande", "race": "race_high", "squadv2": "squad2", "coqa": "coqa",
    "boolq": "boolq", "cb": "cb", "copa": "copa", "rte": "rte", "anli_r1": "anli_r1", "arithmetic_2da": "two_digit_addition",
    "wikitext": "wikitext2",
}  # fmt: skip
# What a metric of ours is in the table.
KINDS = {
    "acc": "acc", "acc_norm": "acc", "acc_per_token": "acc", "acc_unconditional": "acc", "exact_match": "em", "em": "em",
    "f1": "f1", "perplexity": "ppl", "word_perplexity": "word_ppl",
}  # fmt: skip


def figures(task: Task, metric: str, shots: int, scored: int, whole: bool) -> list[dict[str, Any]]:
    """The published figures to set beside a score.

    Args:
        metric: ours, without a filter.
        shots: how many examples our prompts held; 0 meets zero-shot figures, 1 one-shot ones, more the few-shot ones.
        scored: number of questions of ours.
        whole: whether those are all that our data has.

    Returns:
        For each model: `model`, `score`, `shots` (theirs), `split`, `n`, and `full`: whether ours is of a whole set of as many
        questions as theirs.
    """
    key = of_paper(task).get("results") or HARNESS_NAMES.get(str(task.get_config("task")), "")
    column = {0: "zero", 1: "one"}.get(shots, "few")
    found = []
    for entry in table().get(key, []):
        if entry["metric"] != KINDS.get(metric) or column not in entry:
            continue
        found.append(
            {
                "model": entry["model"],
                "score": entry[column],
                "shots": {"zero": 0, "one": 1}.get(column, entry.get("k")),
                "split": entry["split"],
                "n": entry.get("n"),
                "full": whole and scored == entry.get("n"),
            }
        )
    return found


def keep_beside_the_papers_way(rows: list[dict[str, Any]]) -> None:
    """Leave each published figure at one score of ours only, the one that was taken as theirs was: by the paper's protocol where
    there is such a score, and of choices by the ratio of likelihoods where the paper took that."""
    ratio = {row["task"] for row in rows if row["metric"] == "acc_unconditional"}
    of_paper = {(row["task"], KINDS.get(row["metric"])) for row in rows if row["scoring"] == "paper"}
    for row in rows:
        other_way = row["scoring"] == "harness" and (row["task"], KINDS.get(row["metric"])) in of_paper
        if other_way or (row["metric"] == "acc_per_token" and row["task"] in ratio):
            row["published"] = []


@functools.cache
def table() -> dict[str, list[dict[str, Any]]]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))
