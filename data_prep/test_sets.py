"""Examples that a model will be tested on: local files of test data, and the tasks of lm-evaluation-harness."""

import csv
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files import InputError
from data_prep.reading import COMPRESSIONS
from data_prep.sources import Text

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def kind_of(path: Path) -> str:
    """What a file holds by its name, without `.gz` and its like: `.jsonl` of `a.jsonl.gz`."""
    return (Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix).lower()


def local_test_files(entries: Sequence[str]) -> dict[str, Path]:
    """The files that paths, patterns and folders stand for, each under the name of its test set.

    Of a folder, all files of test data below it.

    Raises:
        InputError: an entry without a file, or a file of another kind.
    """
    found: dict[Path, str] = {}
    for entry in entries:
        if Path(entry).is_dir():
            files = [path for path in sorted(Path(entry).rglob("*")) if path.is_file()]
            below = [path for path in files if kind_of(path) in KINDS]
            if not below:
                raise InputError(
                    f"decontaminate.files: the folder {entry} has no test data: files of {', '.join(KINDS)} (or compressed, as .gz)."
                )
            found |= {path: path.relative_to(entry).as_posix() for path in below if path not in found}
            continue
        matches = Text(files=[entry]).matches()
        for path, _ in matches:
            if kind_of(path) not in KINDS:
                raise InputError(
                    f"decontaminate.files: {path} is of no kind that can be read: give {', '.join(KINDS)} (or compressed, as .gz)."
                )
        found |= {path: name for path, name in matches if path not in found}
    named: dict[str, Path] = {}
    for path, name in found.items():
        named[str(path) if name in named else name] = path
    return named


def unread_files(entries: Sequence[str]) -> list[Path]:
    """The files in the folders among these entries that are of no kind that can be read."""
    folders = [Path(entry) for entry in entries if Path(entry).is_dir()]
    inside = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in inside if kind_of(path) not in KINDS]


def file_examples(path: Path, columns: Sequence[str]) -> Iterator[str]:
    """The text of each example of a file: of these columns, or of all, joined by line ends.

    A row is an example; of `.txt` the whole file is. Lists and objects in a column count with all text in them, numbers do not.

    Raises:
        InputError: the file cannot be read, or has none of the columns.
    """
    known: set[str] = set()
    for row in rows(path, header=bool(columns)):
        if columns and isinstance(row, dict):
            known |= row.keys()
            row = [row[column] for column in columns if column in row]
        yield "\n".join(strings(row))
    if columns and kind_of(path) != ".txt" and known.isdisjoint(columns):
        raise InputError(
            f"{path} has none of the columns {', '.join(columns)}, only {', '.join(sorted(map(str, known))) or 'none'}: "
            "correct decontaminate.columns."
        )


def rows(path: Path, header: bool) -> Iterator[Any]:
    """The examples of a file as values of JSON; `header` says that the first row of `.csv` and `.tsv` names the columns."""
    kind = kind_of(path)
    text = Text(files=[str(path)])
    if kind == ".parquet":
        try:
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(batch_size=1024):
                    yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} is not a Parquet file ({error}): correct decontaminate.files.") from None
    elif kind == ".txt":
        yield "".join(text.chunks(path))
    elif kind == ".json":
        yield from listed(parsed("".join(text.chunks(path)), str(path)))
    elif kind == ".jsonl":
        for number, line in enumerate(text.lines(path), 1):
            if line.strip():
                yield parsed(line, f"{path} line {number}")
    else:
        csv.field_size_limit(2**31 - 1)
        lines = (f"{line}\n" for line in text.lines(path))
        dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {}
        # Without wanted columns a first row of names is one more example, and does no harm.
        try:
            yield from csv.DictReader(lines, **dialect) if header else csv.reader(lines, **dialect)
        except csv.Error as error:
            raise InputError(f"{path} is not a {kind} file ({error}): mend it.") from None


def parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{place} is not JSON ({error}): mend or remove it.") from None


def listed(value: Any) -> list[Any]:
    """The examples of a JSON file: a list's elements, those of the first list in an object, or the value as it is."""
    if isinstance(value, dict):
        value = next((field for field in value.values() if isinstance(field, list)), value)
    return value if isinstance(value, list) else [value]


def strings(value: Any) -> Iterator[str]:
    """All text in a value of JSON, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def task_examples(name: str, include: str | None) -> dict[str, Iterator[str]]:
    """The examples of the test and validation parts of a harness task, or of each task of a group, by the task's name.

    An example's text is all text of its fields, joined by line ends: what stood in the benchmark, without the prompt's form.

    Raises:
        InputError: nobody knows the task, or its data is out of reach.
    """
    tasks = load_tasks(name, include)
    for each, task in tasks.items():
        if not (task.has_test_docs() or task.has_validation_docs()):
            raise InputError(
                f"decontaminate.tasks: {each} has neither a test nor a validation part: give its data in decontaminate.files."
            )
    return {each: examples_of(task) for each, task in tasks.items()}


def load_tasks(name: str, include: str | None) -> dict[str, Any]:
    """The harness's tasks behind a name, by their names. Raises InputError where they cannot be had."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError("decontaminate.tasks needs lm-eval: install it, or use decontaminate.files.") from None
    if include is not None and not Path(include).is_dir():
        raise InputError(f"decontaminate.include: there is no folder {include}: name one with the YAMLs of tasks.")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # The harness's; what matters is raised.
    try:
        manager = TaskManager(include_path=include, include_defaults=False)
        if name not in manager.all_tasks:  # The harness's own thousands take seconds to index.
            manager = TaskManager(include_path=include)
        if name not in manager.all_tasks:
            raise InputError(
                f"decontaminate.tasks: there is no task {name!r} in the harness"
                f"{f' and in {include}' if include else ''}: correct the name, or name its folder in decontaminate.include."
            )
        return manager.load([name])["tasks"]
    except InputError:
        raise
    except Exception as error:  # A stranger's YAML over a stranger's data set: anything can come out of it.
        reason = (str(error) or type(error).__name__).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"decontaminate.tasks: the data of {name!r} cannot be loaded ({reason}): run once where the hub can be reached, "
            "or give the data as local files in decontaminate.files."
        ) from None
    finally:
        logging.disable(level)


def examples_of(task: Any) -> Iterator[str]:
    for there, documents in ((task.has_test_docs, task.test_docs), (task.has_validation_docs, task.validation_docs)):
        for example in documents() if there() else ():
            yield "\n".join(strings(example))


def harness_version() -> str | None:
    """The version of lm-eval where it has been imported."""
    return getattr(sys.modules.get("lm_eval"), "__version__", None)
