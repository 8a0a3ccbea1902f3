"""Where a shipped task's questions come from: the user's files, files beside its YAML, or the hub; and what is made of them.

Task YAMLs name `dataset` as `custom_dataset`. It returns two parts that share no question: `test`, which is scored, and
`fewshot`, from which prompts draw their examples.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from data_prep.files import InputError
from pipeline.evaluation import hub as hubs
from pipeline.evaluation.file_rows import FORMS, Headers, Row, read_rows
from pipeline.evaluation.task_columns import is_complete, names_of, needed, to_columns
from pipeline.evaluation.task_forms import ARRANGEMENTS

__all__ = ["Row", "dataset", "divided", "read_rows", "remarks"]

# A published training set can hold millions of examples; prompts draw a few from so many.
MOST_EXAMPLES = 500

Arrange = Callable[[list[Row]], list[Row]]


def dataset(
    *,
    name: str,
    columns: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    lists: Sequence[str] = (),
    form: str | Arrange | None = None,
    key: str | None = None,
    fewshot: int = MOST_EXAMPLES,
    layouts: Sequence[Sequence[str]] = (),
    members: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    hub: str | Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    config_source: str | None = None,
    **metadata: Any,
) -> dict[str, Dataset]:
    """The questions of a task, as the columns that its prompts are made of.

    Args:
        name: of the task, by which `data` names its files.
        columns: each column of the task with the names that publishers give it (`[question, qText]`, a dot for a column
            within a column); `{from: [...], default: ...}` where it may be missing. None keeps the publisher's columns.
        labels: a column that becomes a number from 0 on: for each number the publishers' labels (patterns as of file names);
            a mapping from publishers' column names to such lists where they count differently. Unlabelled rows are left out.
        lists: columns that hold several texts (answers); a single text, a dict of `text` or `aliases` is brought to a list.
        form: of the publisher's rows, in task_forms.ARRANGEMENTS; or a function from rows to rows. It sees the task's columns.
        key: the column of which no two parts share a value (the question, unless it asks about a premise or a passage).
        fewshot: at most so many examples are kept to draw from.
        layouts: columns of csv and tsv files without a header.
        members: patterns of the files inside a zip or folder.
        files: paths relative to the YAML, `test` and perhaps `fewshot`.
        hub: a data set's name, or `{path, config, test, fewshot}` with its splits (test and train unless they are named).
        data: for each task the user's files, `test` and `fewshot`; they come before `files` and `hub`.
        config_source: path of the YAML.

    Returns:
        `test` and `fewshot`. Of a single file or split, the smaller of a fifth and `fewshot` becomes examples, chosen by a hash
        of the question, so that a question is on the same side in each run.

    Raises:
        InputError: no rows, a column that is missing, a label that nobody declared, or the hub is out of reach.
    """
    columns = columns or {}
    required = ", ".join(needed(columns)) or "of the task"
    arrange = ARRANGEMENTS[form] if isinstance(form, str) else form
    headers = Headers(layouts, {name for column in columns for name in names_of(column, columns[column])})
    counts: Counter[str] = Counter()

    def made(rows: list[Row], source: str) -> list[Row]:
        kept = [found for row in rows if (found := to_columns(row, columns, labels or {}, counts, name))]
        kept = arranged(kept, arrange, source, required) if arrange else kept
        kept = [row for row in kept if is_complete(row, lists, columns if arrange is None else (), counts)]
        if not kept:
            why = "; ".join(f"{count} {reason}" for reason, count in counts.items())
            raise InputError(
                f"{source} holds no question for {name!r}{f' ({why})' if why else ''}: see its columns {required}."
            )
        return kept

    parts: dict[str, list[Row]] = {}
    for part, source in sources_of(name, data, files, hub, config_source, required).items():
        if isinstance(source, Path):
            rows = read_rows(source, headers=headers, members=members)
            parts[part] = made(rows, str(source))
        else:
            parts[part] = made(source.rows(fewshot if part == "fewshot" else None), str(source))
    if "fewshot" in parts:
        asked = {content_of(row, key) for row in parts["test"]}
        examples = [row for row in parts["fewshot"] if content_of(row, key) not in asked]
        counts["examples whose question is scored"] += len(parts["fewshot"]) - len(examples)
        scored = parts["test"]
        if not examples:
            raise InputError(
                f"Each example of {name!r} is scored as well: give other examples, or one file, which is divided."
            )
    else:
        examples, scored = divided(parts["test"], key, fewshot)
    return datasets_of(unsorted(scored, key), examples, counts)


def datasets_of(test: list[Row], fewshot: list[Row], counts: Counter[str]) -> dict[str, Dataset]:
    scored = Dataset.from_list([dict(row) for row in test])
    # An empty list has no columns to check against.
    rows = [dict(row) for row in fewshot]
    examples = Dataset.from_list(rows, features=scored.features) if rows else scored.select([])
    scored.info.description = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return {"test": scored, "fewshot": examples}


def remarks(test: Dataset) -> str:
    """Which rows of a task's files were left out and why, such as `158 without a label`; empty where none was."""
    return test.info.description


def sources_of(
    name: str,
    data: Mapping[str, Any] | None,
    files: Mapping[str, str] | None,
    hub: str | Mapping[str, str] | None,
    config_source: str | None,
    required: str,
) -> dict[str, "Path | hubs.Split"]:
    """For `test`, and for `fewshot` where it has its own, a file or a split on the hub."""
    own = (data or {}).get(name) or {}
    own = {"test": own} if isinstance(own, str | Path) else own
    given: dict[str, Path | hubs.Split] = {part: Path(path) for part, path in own.items() if path is not None}
    if "test" in given:
        return given
    if files:
        folder = Path(config_source).parent if config_source else Path()
        return {**{part: folder / path for part, path in files.items()}, **given}
    if hub:
        about = {"path": hub} if isinstance(hub, str) else dict(hub)
        splits = {
            "test": about.get("test", "test"),
            "fewshot": about.get("fewshot", "train" if isinstance(hub, str) else None),
        }
        where = {
            part: hubs.Split(about["path"], about.get("config"), split, name, required)
            for part, split in splits.items()
            if split
        }
        return {**where, **given}
    raise InputError(
        f"Task {name!r} has no questions of its own: give them as --data {name}=FILE with the columns {required} ({FORMS})."
    )


def arranged(rows: list[Row], arrange: Arrange, source: str, required: str) -> list[Row]:
    """What an arrangement makes of rows; what it stumbles over becomes a sentence."""
    try:
        return arrange(rows)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(
            f"{source} is not laid out as its publisher's files are ({type(error).__name__}: {error}): see its columns {required}."
        ) from error


def content_of(row: Mapping[str, Any], key: str | None) -> str:
    """What makes a question the same as another: its key column, whatever its case and spacing."""
    value = row[key] if key else row
    text = value if isinstance(value, str) else repr(sorted(value.items()) if isinstance(value, dict) else value)
    return " ".join(text.lower().split())


def divided(rows: Sequence[Row], key: str | None, most: int) -> tuple[list[Row], list[Row]]:
    """Examples for prompts, and the questions to score: at most `most` and a fifth of the rows become examples.

    Which ones depends on a hash of their content alone; rows of equal content stay together.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(content_of(row, key), []).append(index)
    room = min(most, len(rows) // 5)
    chosen: set[int] = set()
    for content in sorted(groups, key=hash_of):
        if len(chosen) + len(groups[content]) <= room:
            chosen.update(groups[content])
        if len(chosen) == room:
            break
    examples = [row for index, row in enumerate(rows) if index in chosen]
    return examples, [row for index, row in enumerate(rows) if index not in chosen]


def unsorted(rows: list[Row], key: str | None) -> list[Row]:
    """The rows in their order, but of a file sorted by label in that of a hash: the first hundred would have one label only."""
    labels = [row.get("gold") for row in rows]
    changes = sum(label != following for label, following in itertools.pairwise(labels))
    if isinstance(labels[0], int) and 1 < len(set(labels)) == changes + 1:
        return sorted(rows, key=lambda row: hash_of(content_of(row, key)))
    return rows


def hash_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
