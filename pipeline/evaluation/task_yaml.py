"""What is wrong with a task's YAML, in a sentence that names the file and the field; the harness would stumble later, or leave it out."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lm_eval.config.task import TaskConfig
from lm_eval.tasks._yaml_loader import load_yaml

from data_prep.files import InputError

# What the harness's index and loader read beside the fields of a task.
STRUCTURE = {"include", "tag", "group", "class", "task_list", "aggregate_metric_list", "group_alias"}


def check_folder(folder: Path) -> None:
    """Say what is wrong with a folder of tasks: a file that is no YAML, or one that is neither a task nor included by one.

    Raises:
        InputError: there is such a file, or no file at all.
    """
    if not folder.is_dir():
        raise InputError(f"--include {folder} is not a folder: name the folder that holds the task YAMLs.")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise InputError(f"--include {folder} holds no *.yaml: put the task's YAML there (see docs/evaluation.md).")
    whole: dict[Path, Mapping[str, Any]] = {}
    included: set[Path] = set()
    for file in files:
        try:
            whole[file.resolve()] = load_yaml(file, resolve_func=False)
            parts = load_yaml(file, resolve_func=False, recursive=False).get("include", [])
        except Exception as error:  # yaml's errors, and the harness's own for a bad include
            raise InputError(f"{file} cannot be read as a task ({one_line(error)}): correct it.") from None
        included |= {(file.parent / part).resolve() for part in ([parts] if isinstance(parts, str) else parts)}
    for file, config in whole.items():
        if not config.keys() & {"task", "group"} and file not in included and not file.name.startswith("_"):
            raise InputError(
                f"{file} has no field `task`: give the task its name there, or start the file's name with _."
            )


def problem_of(config: Mapping[str, Any]) -> str | None:
    """What a task's YAML lacks or misspells, in a few words; None where nothing is missed."""
    if "class" in config:
        return None
    known = {field.name for field in fields(TaskConfig)} | STRUCTURE
    for field in config:
        if field not in known:
            nearest = difflib.get_close_matches(field, known, n=1)
            return f"it has a field {field!r}, which no task has{f'; is {nearest[0]!r} meant?' if nearest else ''}"
    needed: list[tuple[str, ...]] = [("dataset_path", "custom_dataset"), ("test_split", "validation_split")]
    if config.get("use_prompt") is None:
        needed += [("doc_to_text",), ("doc_to_target",)]
        if config.get("output_type") == "multiple_choice":
            needed.append(("doc_to_choice",))
    for names in needed:
        if all(config.get(name) is None for name in names):
            return f"it has no field {' or '.join(map(repr, names))}"
    return None


def one_line(error: Exception) -> str:
    message = (str(error).strip() or "no message").splitlines()[0].rstrip(".:")
    return f"{type(error).__name__}: {message}"
