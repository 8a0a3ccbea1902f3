"""Scoring a model on tasks with K examples in the prompt: one call of the harness for each task and K, and its rows."""

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups
from lm_eval.tasks.manager import TaskDict

from data_prep.files import InputError
from pipeline.evaluation import paper_scores, published, statistics
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.prompts import prompting, question_key
from pipeline.evaluation.results_cache import ResultsCache
from pipeline.evaluation.tasks import KINDS, chance_level, default_shots

# Bootstrap draws behind the standard error of metrics that have no closed form (perplexity, BLEU, F1).
BOOTSTRAP_DRAWS = 1000
SCORINGS = ("harness", "paper", "both")


def shots_of(loaded: TaskDict, wanted: Sequence[int] | None) -> list[int]:
    """The numbers of examples to score tasks with: the user's, else the tasks' own; a YAML's fixed 0 stays."""
    tasks = loaded["tasks"].values()
    if all(task.get_config("num_fewshot") == 0 for task in tasks):
        return [0]
    return sorted(set(wanted or [k for task in tasks for k in default_shots(task)]))


def depends_on_seed(loaded: TaskDict, shots: int) -> bool:
    """Whether another seed can give another score: by other examples, or by answers that are drawn."""
    settings = [task.get_config("generation_kwargs") or {} for task in loaded["tasks"].values()]
    return shots > 0 or any(kwargs.get("do_sample", kwargs.get("temperature", 0) > 0) for kwargs in settings)


def score(
    lm: PipelineLM,
    loaded: TaskDict,
    shots: int,
    *,
    seed: int,
    limit: int | None = None,
    allow_code: bool = False,
    scoring: str = "both",
    cache: ResultsCache | None = None,
) -> dict[str, Any]:
    """The harness's output for tasks with `shots` examples in each prompt, drawn by `seed`, in JSON's types.

    Beside the harness's sections: `prompts`, for each task the mean number of examples (`shots_mean`), how many prompts got fewer than
    asked for (`shots_cut`) and how many requests lost their beginning (`truncated`).

    Args:
        limit: score only the first so many questions.
        allow_code: let tasks run the programs that the model writes.
        scoring: `harness`, `paper` (its marks beside the harness's likelihoods, text by its decoding alone) or `both`.
        cache: what is finished is taken from there, and put there.

    Raises:
        InputError: a task has fewer examples to draw from, or runs programs without leave.
    """
    outputs = []
    for name, task in loaded["tasks"].items():
        key = cache.key(task, shots=shots, seed=seed, limit=limit, scoring=scoring) if cache else ""
        output = cache.get(name, key) if cache else None
        if output is None:
            output = json_safe(score_task(lm, name, task, shots, seed, limit, allow_code, scoring))
            if cache:
                cache.put(name, key, output)
        outputs.append(output)
    return joined(outputs, loaded)


def score_task(
    lm: PipelineLM, name: str, task: Task, shots: int, seed: int, limit: int | None, allow_code: bool, scoring: str
) -> dict[str, Any]:
    """As `score`, of one task."""
    if getattr(task, "UNSAFE_CODE", False) and not allow_code:
        raise InputError(
            f"Task {name!r} runs the programs that the model writes: allow it with --allow-code-execution, or leave the task out."
        )
    lm.seed = seed  # of answers that are drawn
    truncated = lm.truncated
    paper = paper_scores.decoding(task) if scoring != "harness" else None
    with prompting(task, lm, shots, seed) as prompts:
        if paper is not None and scoring == "paper":
            output = only_paper(name, asked_with(lm, name, task, limit, allow_code, paper))
        else:
            output = asked(lm, name, task, limit, allow_code)
            if paper is not None:
                paper_scores.add_second_pass(name, output, asked_with(lm, name, task, limit, allow_code, paper))
        if task.OUTPUT_TYPE == "multiple_choice" and scoring != "harness":
            paper_scores.add_choice_scores(lm, task, name, output)
        add_missing_errors(task, name, output)
        counts = prompts.counts[: len({sample["doc_id"] for sample in output["samples"][name]})]
    output["prompts"] = {
        name: {
            "shots_mean": sum(counts) / len(counts),
            "shots_cut": sum(count < shots for count in counts) if max(counts, default=0) or shots else 0,
            "truncated": lm.truncated - truncated,
        }
    }
    for sample in output["samples"][name]:
        sample["question"] = question_key(sample["doc"])
    return output


def asked(lm: PipelineLM, name: str, task: Task, limit: int | None, allow_code: bool) -> dict[str, Any]:
    """The harness's output for one task as it is set up."""
    # The harness announces each bootstrap on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        output = evaluate(
            lm,
            {"tasks": {name: task}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=BOOTSTRAP_DRAWS,
            confirm_run_unsafe_code=allow_code,
        )
    assert output is not None, "only a rank other than 0 gets no output"
    return dict(output)


def asked_with(
    lm: PipelineLM, name: str, task: Task, limit: int | None, allow_code: bool, settings: dict[str, Any]
) -> dict[str, Any]:
    """As `asked`, with other generation settings."""
    own = task.get_config("generation_kwargs") or {}
    task.set_config("generation_kwargs", {**own, **settings})
    try:
        return asked(lm, name, task, limit, allow_code)
    finally:
        task.set_config("generation_kwargs", own)


def only_paper(name: str, output: dict[str, Any]) -> dict[str, Any]:
    """An output whose one pass was the paper's, labelled so."""
    results = output["results"][name]
    for key in [key for key in results if "," in key]:
        metric, _, filtered = key.partition(",")
        label = paper_scores.FILTER if filtered == "none" else f"{filtered}-{paper_scores.FILTER}"
        results[f"{metric},{label}"] = results.pop(key)
    return output


def add_missing_errors(task: Task, name: str, output: dict[str, Any]) -> None:
    """Bootstrap the standard error of scores for which the harness knows none."""
    results = output["results"][name]
    for key in [key for key in results if "," in key and "_stderr," not in key]:
        metric, _, filtered = key.partition(",")
        if not isinstance(results.get(f"{metric}_stderr,{filtered}"), int | float):
            values = values_of(output["samples"][name], metric, filtered)
            aggregate = (task.aggregation() or {}).get(metric)
            if len(values) > 1 and aggregate is not None:
                results[f"{metric}_stderr,{filtered}"] = statistics.bootstrap_stderr(values, aggregate)


def values_of(samples: Iterable[dict[str, Any]], metric: str, filtered: str) -> list[Any]:
    """What each question got in a metric, under a filter of the harness or the paper's."""
    samples = list(samples)
    own = filtered.removesuffix(f"-{paper_scores.FILTER}") if filtered != paper_scores.FILTER else None
    chosen = [sample for sample in samples if sample["filter"] == (own or samples[0]["filter"])]
    if filtered.endswith(paper_scores.FILTER) and any(paper_scores.FILTER in sample for sample in chosen):
        chosen = [sample[paper_scores.FILTER] if metric in sample[paper_scores.FILTER] else sample for sample in chosen]
    return [sample[metric] for sample in chosen if metric in sample]


def aggregate_of(task: Task, metric: str, values: Sequence[Any]) -> statistics.Aggregate | None:
    """What makes a score of the marks of questions; None for their mean."""
    aggregate = (task.aggregation() or {}).get(metric)
    numbers = all(isinstance(value, int | float) for value in values)
    return None if numbers and aggregate in (None, mean) else aggregate


def joined(outputs: Sequence[dict[str, Any]], loaded: TaskDict) -> dict[str, Any]:
    """Outputs of single tasks as one, with the groups' scores."""
    output: dict[str, Any] = {}
    for single in outputs:
        for section, content in single.items():
            output.setdefault(section, {}).update(content)
    groups = loaded.get("groups", {})
    if groups:
        results = EvalAcc(
            metrics=dict(output["results"]), num_fewshot=output["n-shot"], higher_is_better=output["higher_is_better"],
            configs=output["configs"], versions=output["versions"], groups=groups, n_samples=output["n-samples"],
        )  # fmt: skip
        whole = json_safe(dict(aggregate_groups(results)._to_eval_results()))
        output.update({section: content for section, content in whole.items() if section != "configs"})
    return output


def rows_of(output: dict[str, Any], loaded: TaskDict, whole: bool = True) -> list[dict[str, Any]]:
    """One row for each task or group and metric: what a table or a plot of the output of `score` shows.

    Args:
        whole: whether every question of the tasks was asked, so that the score may stand beside published ones.
    """
    rows = []
    for name, metrics in output["results"].items():
        task = loaded["tasks"].get(name)
        samples = output["samples"].get(name, [])
        about = output.get("prompts", {}).get(name, {})
        for key in metrics:
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filtered}")
            values = values_of(samples, metric, filtered) if samples else []
            chance = chance_level(task, metric) if task else None
            of_paper = filtered.endswith(paper_scores.FILTER)
            shown = filtered if filtered not in ("none", paper_scores.FILTER) else ""
            shots = output["n-shot"].get(name) or 0
            rows.append(
                {
                    "task": name,
                    "kind": kind_of(task),
                    "shots": shots,
                    "metric": f"{metric},{shown}" if shown else metric,
                    "scoring": "paper" if of_paper else "harness",
                    "score": metrics[key],
                    "stderr": stderr if isinstance(stderr, int | float) else None,
                    "chance": chance,
                    "p_chance": p_of_chance(values, chance),
                    "n": len(values) or metrics.get("sample_len"),
                    "higher_is_better": output["higher_is_better"].get(name, {}).get(metric),
                    "truncated": about.get("truncated", 0),
                    "shots_cut": about.get("shots_cut", 0),
                    "shots_mean": about.get("shots_mean"),
                    "published": published.figures(task, metric, shots, len(values), whole) if task else [],
                }
            )
    published.keep_beside_the_papers_way(rows)
    return json_safe(rows)


def kind_of(task: Task | None) -> str | None:
    """The kind of task that the GPT-3 paper would file it under, as one of its tags says."""
    tags = task.get_config("tag") if task else None
    return next((tag for tag in ([tags] if isinstance(tags, str) else tags or []) if tag in KINDS), None)


def p_of_chance(values: Sequence[Any], chance: float | None) -> float | None:
    """How probable a score as far from chance is; None where marks are not one number a question."""
    if chance is None or not all(isinstance(value, int | float) for value in values):
        return None
    return statistics.p_of_chance(values, [chance] * len(values))


def over_seeds(rows_by_seed: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of the same scores under several seeds as one each: their mean, and how far the draw of examples moves them."""
    by_key: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for seed, rows in rows_by_seed.items():
        for row in rows:
            by_key.setdefault((row["task"], row["shots"], row["metric"], row["scoring"]), {})[seed] = row
    merged = []
    for of_seed in by_key.values():
        rows = list(of_seed.values())
        scores = [row["score"] for row in rows]
        known = [score for score in scores if score is not None]
        errors = [row["stderr"] for row in rows if row["stderr"] is not None]
        merged.append(
            {
                **rows[0],
                "score": sum(known) / len(known) if known else None,
                "stderr": sum(errors) / len(errors) if errors else None,
                "seeds": list(of_seed),
                "seed_scores": scores,
                "spread": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "truncated": max(row["truncated"] for row in rows),
                "shots_cut": max(row["shots_cut"] for row in rows),
            }
        )
    return merged


def merged(outputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Outputs of several calls as one, without samples; tasks are keyed `task@shots`, since one may have several K."""
    merged: dict[str, Any] = {}
    for output in outputs:
        for section in output.keys() - {"samples"}:
            by_task = {f"{name}@{output['n-shot'].get(name) or 0}": value for name, value in output[section].items()}
            merged.setdefault(section, {}).update(by_task)
    return json_safe(dict(sorted(merged.items())))


def readable(sample: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to see of a harness sample: the prompt, what was asked, the answer and the marks."""
    prompt, *_ = sample["arguments"][0]
    asked = [rest[0] if rest else None for _, *rest in sample["arguments"]]
    return json_safe(
        {
            "prompt": prompt,
            "asked": asked,
            "target": sample["target"],
            "answers": sample["filtered_resps"],
            **{metric: sample[metric] for metric in sample["metrics"]},
            **{
                key: sample[key] for key in (paper_scores.FILTER, "contaminated", "question", "filter") if key in sample
            },
        }
    )


def json_safe(value: Any) -> Any:
    """The same value in JSON's types: NaN and infinity become null, what has no JSON form becomes its text."""
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        return json_safe(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
