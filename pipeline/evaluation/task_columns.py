"""A publisher's columns as a task's: names of their own, labels in words or numbers, one answer or a list of them."""

import ast
import contextlib
import fnmatch
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_prep.files import InputError
from pipeline.evaluation.file_rows import Row, few

# What publishers write where a question has no agreed label, or a hidden one.
UNLABELLED = frozenset({"", "-", "-1", "none", "null"})


def to_columns(
    row: Row, columns: Mapping[str, Any], labels: Mapping[str, Any], counts: Counter[str], task: str
) -> Row | None:
    """A publisher's row as the task's columns; None, and counted, where it has no label.

    Raises:
        InputError: a column or a label that the task does not know.
    """
    if not columns:
        return row
    flat = {column.lower(): column for column in row}
    values: dict[str, Any] = {}
    for column, spec in columns.items():
        names = names_of(column, spec)
        found = next((name for name in names if value_of(row, flat, name) is not None), None)
        if found is None and is_optional(spec):
            values[column] = spec["default"]
        elif found is None:
            raise InputError(
                f"{row.place} has no {' or '.join(dict.fromkeys(names))}, which task {task!r} reads as {column}; "
                f"it has {few(row)}: rename the column or add it."
            )
        else:
            values[column] = value_of(row, flat, found)
            if column in labels:
                number = number_of(values[column], found, labels[column], row.place)
                if number is None:
                    counts["without a label"] += 1
                    return None
                values[column] = number
            elif isinstance(values[column], bool | int | float):
                values[column] = str(values[column])
            elif isinstance(values[column], str) and not values[column].strip() and not is_optional(spec):
                counts[f"without {column}"] += 1
                return None
    return Row(values, row.place)


def value_of(row: Mapping[str, Any], flat: Mapping[str, str], name: str) -> Any:
    """The value of a column by its name, whatever its case; of a column within a column after a dot."""
    if name.lower() in flat:
        return row[flat[name.lower()]]
    outer, dot, inner = name.partition(".")
    value = row.get(flat.get(outer.lower(), outer)) if dot else None
    return value.get(inner) if isinstance(value, Mapping) else None


def number_of(value: Any, column: str, declared: Any, place: str) -> int | None:
    """The number of a label; None where the publisher gave none."""
    spellings = declared.get(column, next(iter(declared.values()))) if isinstance(declared, Mapping) else declared
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().lower()
    for number, words in enumerate(spellings):
        if any(fnmatch.fnmatchcase(text, str(word).lower()) for word in words):
            return number
    if text in UNLABELLED:
        return None
    known = "; ".join(" or ".join(map(str, words)) for words in spellings)
    raise InputError(f"{place} has {column} {value!r}, which is none of {known}: correct it or remove the row.")


def needed(columns: Mapping[str, Any]) -> list[str]:
    """The columns that a file has to have."""
    return [column for column, spec in columns.items() if not is_optional(spec)]


def names_of(column: str, spec: Any) -> list[str]:
    """What a column may be called in a file."""
    return [column, *(spec.get("from") or [] if isinstance(spec, Mapping) else spec)]


def is_optional(spec: Any) -> bool:
    return isinstance(spec, Mapping) and "default" in spec


def is_complete(row: Row, lists: Sequence[str], columns: Collection[str], counts: Counter[str]) -> bool:
    """Bring the columns of several texts to lists, and say whether the row can be asked; if not it is counted."""
    for column in lists:
        row[column] = texts(row.get(column), row.place, column)
        if not row[column]:
            counts[f"without {column}"] += 1
            return False
    choices, gold = row.get("choices"), row.get("gold")
    if isinstance(choices, list) and isinstance(gold, int) and gold >= len(choices):
        raise InputError(f"{row.place} has choice {gold + 1} for its answer, of {len(choices)}: correct it.")
    for column in columns:
        if column not in lists and isinstance(row[column], Mapping | list):
            raise InputError(
                f"{row.place} has {column} of several parts ({few(map(str, row[column]))}): give one text."
            )
    return True


def texts(value: Any, place: str, column: str) -> list[str]:
    """Several texts, each once, from what publishers write: a list, one text, or TriviaQA's and SQuAD's dicts."""
    if isinstance(value, Mapping):
        lower = {str(name).lower(): item for name, item in value.items()}
        if not lower.keys() & {"text", "value", "aliases"}:
            raise InputError(f"{place} has {column} with {few(value)}: give a list of texts.")
        value = [*as_list(lower.get("value")), *as_list(lower.get("aliases")), *as_list(lower.get("text"))]
    found = [str(item).strip() for item in as_list(value) if item is not None]
    return list(dict.fromkeys(text for text in found if text))


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        # A list inside a cell of a csv file, in JSON's or in Python's form.
        with contextlib.suppress(ValueError, SyntaxError):
            parsed = ast.literal_eval(value)
            if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
                return parsed
        return [value]
    return list(value) if isinstance(value, list | tuple) else [value]
