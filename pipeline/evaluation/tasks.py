"""Which tasks there are and how one is loaded: the shipped YAMLs, a folder of the user's, the harness's by name."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.manager import TaskDict

from data_prep.files import InputError

SHIPPED = Path(__file__).parents[2] / "configs" / "tasks"
# What `datasets.load_dataset` reads without a hub.
LOCAL_FORMATS = {"json", "csv", "parquet", "text", "arrow"}


def find(names: Sequence[str] | None, include: Path | None, metadata: dict[str, Any]) -> tuple[TaskManager, list[str]]:
    """A task manager that knows the wanted tasks, and their names.

    Args:
        names: tasks, groups or tags; None for all tasks of `include`, or all shipped ones.
        include: a folder of task YAMLs; its tasks replace others of the same name.
        metadata: handed to each task's `custom_dataset`.

    Raises:
        InputError: a name that nobody knows, or a folder without tasks.
    """
    folders: list[str | Path] = [SHIPPED, *([include] if include else [])]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if include:
        check_yaml(include)
    if names is None:
        return manager, TaskManager(include_path=include or SHIPPED, include_defaults=False).all_subtasks
    if not set(names) <= set(manager.all_tasks):
        # The harness's own thousands of tasks take seconds to index: only where one of them may be meant.
        manager = TaskManager(include_path=folders, include_defaults=True, metadata=metadata)
    for name in names:
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            hint = f"the nearest names are {', '.join(nearest)}" if nearest else f"the shipped tasks are in {SHIPPED}"
            raise InputError(f"There is no task {name!r}: {hint}; tasks of your own come with --include FOLDER.")
    return manager, list(dict.fromkeys(names))


def check_yaml(folder: Path) -> None:
    """Say what is wrong with a folder of tasks; the harness would leave a broken file out without a word."""
    if not folder.is_dir():
        raise InputError(f"--include {folder} is not a folder: name the folder that holds the task YAMLs.")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise InputError(f"--include {folder} holds no *.yaml: put the task's YAML there (see docs/evaluation.md).")
    for file in files:
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # yaml's errors, and the harness's own for a bad include
            raise InputError(f"{file} cannot be read as a task ({one_line(error)}): correct it.") from None


def load(manager: TaskManager, name: str) -> TaskDict:
    """The tasks behind a name, with their examples.

    Raises:
        InputError: the examples are out of reach, or the YAML lacks something.
    """
    try:
        return manager.load([name])
    except InputError:
        raise
    except Exception as error:  # A task is a stranger's YAML over a stranger's data set: anything can come out of it.
        entry = manager.task_index[name]
        source = load_yaml(entry.yaml_path, resolve_func=False).get("dataset_path") if entry.yaml_path else None
        if source is None or source in LOCAL_FORMATS or Path(source).exists():
            way_out = f"correct {entry.yaml_path or 'its definition'}"
        else:
            way_out = (
                f"it reads {source!r} from the Hugging Face hub; evaluate where the hub can be reached, or copy the task's "
                "YAML, point its dataset_path at local files (json, csv, parquet) and give its folder with --include"
            )
        raise InputError(f"Task {name!r} could not be loaded ({one_line(error)}): {way_out}.") from error


def default_shots(task: Task) -> list[int]:
    """How many examples a prompt holds unless the user says: what the YAML's metadata lists, or the task's number."""
    metadata = task.get_config("metadata") or {}
    return metadata.get("shots") or [task.get_config("num_fewshot") or 0]


def chance_level(task: Task, metric: str) -> float | None:
    """What guessing scores: as the YAML's metadata states it, or one in the number of choices; None if unknown."""
    stated = (task.get_config("metadata") or {}).get("chance", {})
    if metric in stated:
        return stated[metric]
    if task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm", "acc_bytes"):
        counts = [len(task.doc_to_choice(doc)) for doc in task.eval_docs]  # pyright: ignore[reportAttributeAccessIssue]
        return sum(1 / count for count in counts) / len(counts)
    return None


def one_line(error: Exception) -> str:
    message = (str(error).strip() or "no message").splitlines()[0].rstrip(".:")
    return f"{type(error).__name__}: {message}"
