"""One file for several tasks: a user who gives a file to one task of a family means it for the others too; and what was left out of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset


def own_or_shared(data: Mapping[str, Any] | None, name: str, family: Sequence[str]) -> dict[str, Any]:
    """The user's files, with those of the first task of the family that has some under `name` where it has none of its own."""
    data = dict(data or {})
    given = next((data[task] for task in (name, *family) if data.get(task)), None)
    return {**data, name: given} if given else data


def noted(parts: dict[str, Dataset], remark: str) -> dict[str, Dataset]:
    """The parts, with a remark on rows that were left out beside those that task_files.remarks gives."""
    about = parts["test"].info
    about.description = ", ".join(filter(None, [about.description, remark]))
    return parts
