"""Loading tasks by name, with a sentence wherever one cannot be had; and what a loaded task says of itself."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # fills the registry of metrics
import lm_eval.tasks
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.manager import TaskDict

from data_prep.files import InputError
from pipeline.evaluation import hub, task_files
from pipeline.evaluation.task_columns import needed
from pipeline.evaluation.task_names import (
    KINDS,
    PREFIX,
    SHIPPED,
    default_names,
    file_names,
    find,
    is_file,
    members,
    quiet,
)
from pipeline.evaluation.task_yaml import one_line, problem_of

__all__ = [
    "KINDS",
    "SHIPPED",
    "chance_level",
    "default_names",
    "default_shots",
    "file_names",
    "find",
    "left_out",
    "load",
    "of_paper",
    "quiet",
]

# What `datasets.load_dataset` reads without a hub.
LOCAL_FORMATS = {"json", "csv", "parquet", "text", "arrow"}
ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_per_token", "acc_unconditional")


def load(manager: TaskManager, name: str) -> TaskDict:
    """The tasks behind a name, with their examples; a task's `tag` ends with its kind.

    The hub is asked for only where a task reads from it, and never waited for.

    Raises:
        InputError: the examples are out of reach, or the YAML lacks something.
    """
    configs = configs_of(manager, name)
    for source, config in configs:
        if problem := problem_of(config):
            raise InputError(f"Task {config.get('task', name)!r} could not be loaded ({problem}): correct {source}.")
    on_hub = [(source, config) for source, config in configs if reads_hub(config)]
    if on_hub:
        hub.prepare()
    try:
        with quiet():
            loaded = manager.load([name])
    except InputError:
        raise
    except Exception as error:  # A task is a stranger's YAML over a stranger's data set: anything can come out of it.
        raise InputError(why_not(name, error, configs, on_hub)) from error
    by_name = {config.get("task"): (source, config) for source, config in configs}
    for task in loaded["tasks"].values():
        check_metrics(task)
        source, config = by_name.get(task.get_config("task"), ("", {}))
        if not Path(source).is_relative_to(Path(lm_eval.tasks.__file__).parent):
            check_columns(task, source)
        task.set_config("tag", tags_of(config))
    return loaded


def configs_of(manager: TaskManager, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The YAML of each task behind a name, with its path."""
    if is_file(name):
        return [(name, load_yaml(name, resolve_func=False))]
    entries = [manager.task_index[member] for member in members(manager, name)]
    return [(str(entry.yaml_path), entry.cfg or {}) for entry in entries if entry.kind in (Kind.TASK, Kind.PY_TASK)]


def reads_hub(config: Mapping[str, Any]) -> bool:
    """Whether loading a task asks the hub, for its data or for a metric. Ours ask when it comes to that."""
    metrics = [metric for metric in config.get("metric_list") or [] if isinstance(metric, Mapping)]
    fetched = any(metric.get("hf_evaluate") or not is_known(metric.get("metric")) for metric in metrics)
    if fetched and config.get("process_results") is None:
        return True
    if "custom_dataset" in config:
        return "pipeline.evaluation." not in str(config["custom_dataset"])
    source = str(config.get("dataset_path"))
    return "class" in config or not (source in LOCAL_FORMATS or Path(source).exists())


def is_known(metric: Any) -> bool:
    return (
        not isinstance(metric, str) or metric in metric_registry or "/" in metric
    )  # a function is read as its file's path


def why_not(
    name: str, error: Exception, configs: list[tuple[str, dict[str, Any]]], on_hub: list[tuple[str, Any]]
) -> str:
    """A sentence on a task that could not be loaded, and the way out."""
    if not on_hub:
        where = configs[0][0] if configs else "its definition"
        return f"Task {name!r} could not be loaded ({reason_of(error, [config for _, config in configs])}): correct {where}."
    source, config = on_hub[0]
    # A task in Python keeps to itself what it reads, but the hub's libraries name it.
    unnamed = re.search(r"'([\w.-]+/[\w.-]+)'", str(error))
    read = config.get("dataset_path") or (unnamed[1] if unnamed else "its data")
    ours = SHIPPED / f"{PREFIX}{name}.yaml"
    own = ""
    if ours.exists():
        columns = ", ".join(needed(load_yaml(ours, resolve_func=False)["dataset_kwargs"]["columns"]))
        own = f"give our form of it a file with the columns {columns} (--data {ours.stem}=FILE), or "
    return (
        f"Task {name!r} reads {read!r} from the Hugging Face hub{hub.because(error)}: {own}evaluate once where the hub can be reached, "
        f"or copy its YAML ({source}), point dataset_path at local files (json, csv, parquet) and give the copy's folder with --include."
    )


def reason_of(error: Exception, configs: Sequence[Mapping[str, Any]]) -> str:
    """What an error says of a task's data, in a few words."""
    splits = {
        config.get(field)
        for config in configs
        for field in ("test_split", "validation_split", "training_split", "fewshot_split")
    }
    if isinstance(error, KeyError) and error.args and error.args[0] in splits:
        return f"its data has no split {error.args[0]!r}"
    if isinstance(error, StopIteration | IndexError):
        return "a split of its data is empty"
    return one_line(error)


def check_columns(task: Task, source: str) -> None:
    """Say that a field names a column which the data lacks; the harness would take the name itself for the text.

    Raises:
        InputError: there is such a field.
    """
    if not isinstance(task, ConfigurableTask):
        return
    for field in ("doc_to_text", "doc_to_target"):
        column = task.get_config(field)
        if isinstance(column, str) and column.isidentifier() and column not in task.features:
            raise InputError(
                f"Task {task.config.task!r} could not be loaded (its {field} is {column!r}, no column of its data, which has "
                f"{', '.join(task.features)}): correct {source}."
            )


def check_metrics(task: Task) -> None:
    """Say that a metric could not be had; the harness would stumble over it after the last answer.

    Raises:
        InputError: a metric is neither the harness's nor within reach.
    """
    if isinstance(task, ConfigurableTask) and task.config.process_results is None:
        for metric, function in task._metric_fn_list.items():
            if function is None:
                raise InputError(
                    f"Task {task.config.task!r} scores with {metric!r}, which the library evaluate fetches from the Hugging Face hub: "
                    "evaluate once where the hub can be reached, or copy the task's YAML with another metric and give its folder with "
                    "--include."
                )


def tags_of(config: Mapping[str, Any]) -> list[str]:
    """A task's tags; its kind is the last."""
    tags = config.get("tag") or []
    return sorted([tags] if isinstance(tags, str) else tags, key=lambda tag: tag in KINDS)


def of_paper(task: Task) -> dict[str, Any]:
    """What a task's YAML says of how the GPT-3 paper asked and scored it (`metadata.paper`)."""
    return (task.get_config("metadata") or {}).get("paper") or {}


def default_shots(task: Task) -> list[int]:
    """How many examples a prompt holds unless the user says: what the YAML's metadata lists, or the task's number.

    A file of few questions has few examples: more of them than there are is not asked for.
    """
    metadata = task.get_config("metadata") or {}
    shots = metadata.get("shots") or [task.get_config("num_fewshot") or 0]
    sampler = getattr(task, "sampler", None)
    return shots if sampler is None else sorted({min(count, len(sampler.df)) for count in shots})


def left_out(task: Task) -> str:
    """Which rows of the user's file were left out and why; empty where none was."""
    test = (getattr(task, "dataset", None) or {}).get("test")
    description = getattr(getattr(test, "info", None), "description", "")
    return task_files.remarks(test) if test is not None and description else ""


def chance_level(task: Task, metric: str) -> float | None:
    """What guessing scores: as the YAML's metadata states it, or one in the number of choices; None if unknown."""
    stated = (task.get_config("metadata") or {}).get("chance", {})
    if metric in stated:
        return stated[metric]
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ACCURACIES:
        if metric != "acc" and "acc" in stated:
            return stated["acc"]
        counts = [len(task.doc_to_choice(doc)) for doc in task.eval_docs]  # pyright: ignore[reportAttributeAccessIssue]
        return sum(1 / count for count in counts) / len(counts)
    return None
