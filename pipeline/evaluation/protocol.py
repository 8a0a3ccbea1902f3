"""Scoring a model on tasks with K examples in the prompt: one call of the harness for each task and K, and its rows."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate
from lm_eval.tasks.manager import TaskDict

from data_prep.files import InputError
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.tasks import chance_level, default_shots

# Bootstrap draws behind the standard error of metrics that have no closed form (perplexity, BLEU, F1).
BOOTSTRAP_DRAWS = 1000


def shots_of(loaded: TaskDict, wanted: Sequence[int] | None) -> list[int]:
    """The numbers of examples to score tasks with: the user's, else the tasks' own; a YAML's fixed 0 stays."""
    tasks = loaded["tasks"].values()
    if all(task.get_config("num_fewshot") == 0 for task in tasks):
        return [0]
    return sorted(set(wanted or [k for task in tasks for k in default_shots(task)]))


def score(lm: PipelineLM, loaded: TaskDict, shots: int, *, seed: int, limit: int | None = None) -> dict[str, Any]:
    """The harness's output for tasks with `shots` examples in each prompt, drawn by `seed`.

    Raises:
        InputError: a task has fewer examples to draw from.
    """
    for name, task in loaded["tasks"].items():
        if task.get_config("num_fewshot") != 0:
            pool = len(task.sampler.df)  # pyright: ignore[reportAttributeAccessIssue]
            if shots > pool:
                raise InputError(f"Task {name!r} has {pool} examples to draw from, not {shots}: ask for fewer --shots.")
            # None is the harness's other word for 0, and does not read as a YAML's fixed 0 when the next K comes.
            task.set_config("num_fewshot", shots or None)
        task.set_fewshot_seed(seed)
    # The harness announces each bootstrap on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        output = evaluate(lm, loaded, limit=limit, bootstrap_iters=BOOTSTRAP_DRAWS)
    assert output is not None, "only a rank other than 0 gets no output"
    return dict(output)


def rows_of(output: dict[str, Any], loaded: TaskDict) -> list[dict[str, Any]]:
    """One row for each task or group and metric: what a table or a plot of the harness's output shows."""
    rows = []
    for name, metrics in output["results"].items():
        task = loaded["tasks"].get(name)
        for key in metrics:
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filtered}")
            rows.append(
                {
                    "task": name,
                    "shots": output["n-shot"].get(name, 0),
                    "metric": metric if filtered == "none" else key,
                    "score": metrics[key],
                    "stderr": stderr if isinstance(stderr, int | float) else None,
                    "chance": chance_level(task, metric) if task else None,
                    "n": metrics.get("sample_len"),
                    "higher_is_better": output["higher_is_better"].get(name, {}).get(metric),
                }
            )
    return json_safe(rows)


def merged(outputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Outputs of several calls as one, without samples; tasks are keyed `task@shots`, since one may have several K."""
    merged: dict[str, Any] = {}
    for output in outputs:
        for section in output.keys() - {"samples"}:
            by_task = {f"{name}@{output['n-shot'].get(name, 0)}": value for name, value in output[section].items()}
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
