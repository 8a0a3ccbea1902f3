"""What tasks are called: the shipped YAMLs, a folder of the user's and the harness's own, by name, tag, group or pattern."""

import contextlib
import difflib
import fnmatch
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from data_prep.files import InputError
from pipeline.evaluation.task_yaml import check_folder

SHIPPED = Path(__file__).parents[2] / "configs" / "tasks"
KINDS = (
    "translation", "reading_comprehension", "closed_book_qa", "nli", "news", "dialogue", "cloze", "commonsense", "arithmetic",
    "scrambling", "sentiment", "code",
)  # fmt: skip
"""The tags by which shipped tasks say of which kind they are, after the GPT-3 paper's sections."""
FIRST_LOOK = "first_look"
"""The tag of the tasks that are scored where none are named: of those that need neither a file nor the hub (`self_contained`) the ones on
which small models differ."""
PREFIX = "gpt3_"
"""Where the harness has a task of that name, ours in the paper's form begins with this."""


def find(names: Sequence[str] | None, include: Path | None, metadata: dict[str, Any]) -> tuple[TaskManager, list[str]]:
    """A task manager that knows the wanted tasks, and their names.

    Args:
        names: tasks, groups, tags, or patterns of them (`arithmetic_*`), each perhaps several with commas; or a YAML's path. A tag
            stands for its tasks. None for all tasks of `include`, else the shipped ones for a first look; and for those that
            have a file in `metadata["data"]`.
        include: a folder of task YAMLs; its tasks replace others of the same name.
        metadata: handed to each task's `custom_dataset`: `data` are the user's files by task, a harness task's name standing for
            our form of it (`copa` for `gpt3_copa`).

    Raises:
        InputError: a name that nobody knows, a folder without tasks, or a file for a task that reads none.
    """
    if include:
        check_folder(include)
    folders: list[str | Path] = [SHIPPED, *([include] if include else [])]
    with quiet():
        own = TaskManager(include_path=folders, include_defaults=False)
        data, renamed = data_by_task(own, metadata.get("data") or {})
        metadata = {**metadata, "data": data}
        wanted = [renamed.get(part, part) for name in names or [] for part in name.split(",") if part]
        if names is None:
            named = TaskManager(include_path=include, include_defaults=False).all_subtasks if include else []
            wanted = list(
                dict.fromkeys([*(named or default_names(own, {})), *default_names(own, data, only_data=True)])
            )
        # The harness's own thousands of tasks take seconds to index: only where one of them may be meant.
        harness = not set(wanted) <= set(own.all_tasks) and not all(is_file(name) for name in wanted)
        manager = TaskManager(include_path=folders, include_defaults=harness, metadata=metadata)
    chosen = [name for want in wanted for name in resolved(manager, want)]
    inside = {member for name in chosen if is_group(manager, name) for member in members(manager, name)[1:]}
    return manager, [name for name in dict.fromkeys(chosen) if name not in inside]


def default_names(manager: TaskManager, data: Mapping[str, Any], *, only_data: bool = False) -> list[str]:
    """The tasks to score where none are named: those for a first look, and those that have a file in `data`."""
    return [
        name
        for name in manager.all_subtasks
        if (FIRST_LOOK in manager.task_index[name].tags and not only_data) or set(file_names(manager, name)) & set(data)
    ]


def file_names(manager: TaskManager, name: str) -> list[str]:
    """The names under which a task looks for the user's files: its own, and those of a family that shares a file."""
    options = (manager.task_index[name].cfg or {}).get("dataset_kwargs") or {}
    return [options["name"], *options.get("family", [])] if isinstance(options.get("name"), str) else []


def data_by_task(manager: TaskManager, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The user's files under the names that our tasks look for, and which names of the harness were meant for ours."""
    reading = {file_name for name in manager.all_subtasks for file_name in file_names(manager, name)}
    renamed = {name: PREFIX + name for name in data if name not in reading and PREFIX + name in reading}
    for name in data:
        if name not in reading and name not in renamed:
            nearest = difflib.get_close_matches(name, reading, n=3, cutoff=0.5)
            hint = (
                f"the nearest that do are {', '.join(nearest)}"
                if nearest
                else f"those are {', '.join(sorted(reading))}"
            )
            raise InputError(
                f"--data {name}=... names no task that reads a file: {hint}; for a task of the harness copy its YAML, point its "
                "dataset_path at the file and give its folder with --include."
            )
    return {renamed.get(name, name): files for name, files in data.items()}, renamed


def resolved(manager: TaskManager, name: str) -> list[str]:
    """The tasks and groups that a name, a tag or a pattern stands for."""
    if is_file(name):
        return [name]
    matched = [name] if name in manager.task_index else fnmatch.filter(manager.all_tasks, name)
    if not matched:
        nearest = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
        hint = f"the nearest names are {', '.join(nearest)}" if nearest else f"the shipped tasks are in {SHIPPED}"
        raise InputError(f"There is no task {name!r}: {hint}; tasks of your own come with --include FOLDER.")
    tags = [match for match in matched if manager.task_index[match].kind is Kind.TAG]
    return [
        task for match in matched for task in (sorted(manager.task_index[match].tags) if match in tags else [match])
    ]


def is_file(name: str) -> bool:
    return name.endswith(".yaml") and Path(name).is_file()


def is_group(manager: TaskManager, name: str) -> bool:
    return name in manager.task_index and manager.task_index[name].kind is Kind.GROUP


def members(manager: TaskManager, name: str) -> list[str]:
    """A name and, of a group or tag, all names below it."""
    entry = manager.task_index.get(name)
    if entry is None:
        return []
    below = (
        sorted(entry.tags)
        if entry.kind is Kind.TAG
        else (entry.cfg or {}).get("task")
        if is_group(manager, name)
        else []
    )
    names = [item if isinstance(item, str) else item.get("task") or item.get("group") for item in below or []]
    return [name, *(deeper for item in names if isinstance(item, str) for deeper in members(manager, item))]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness from warning of what shipped tasks do on purpose: questions of their own, tags of their own."""
    loggers = [logging.getLogger(name) for name in ("lm_eval.api.task", "lm_eval.tasks._index", "lm_eval.config.task")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
