"""Reading a task's questions from a file of any of the forms in which they are published, row by row.

A row remembers its place in its file, so that whoever finds something wrong with it can say where it stands.
"""

import csv
import fnmatch
import gzip
import io
import json
import xml.etree.ElementTree
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from data_prep.files import InputError

FORMS = "jsonl, json, csv, tsv, parquet, txt, xml (COPA), any of them as .gz, a .zip or a folder of them"


class Row(dict[str, Any]):
    """One question as its publisher wrote it: columns to values.

    Attributes:
        place: where it stands, such as `snli.csv.gz line 7`.
    """

    def __init__(self, values: dict[str, Any], place: str):
        super().__init__(values)
        self.place = place


class Headers(NamedTuple):
    """How a csv or tsv file without a header is read.

    Attributes:
        layouts: lists of columns, of which the one as long as a line stands for the header.
        names: other names of columns; a first line with any of the names is a header.
    """

    layouts: Sequence[Sequence[str]] = ()
    names: Collection[str] = ()


def read_rows(path: Path, *, headers: Headers | None = None, members: Sequence[str] = ()) -> list[Row]:
    """The rows of a file, in its order.

    Args:
        headers: for csv and tsv files that may lack theirs; None where each has one.
        members: patterns of the names in a zip or folder that hold rows; all but notes such as README without them. Their
            rows say in the column `file` where they are from.

    Raises:
        InputError: there is no such file, it is of another form, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: name a file ({FORMS}).")
    try:
        return list(rows_of_file(path, headers or Headers(), members))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}): is it whole?") from None


def rows_of_file(path: Path, headers: Headers, members: Sequence[str]) -> Iterator[Row]:
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        for name in chosen(names, members, path):
            yield from named(parsed((path / name).read_bytes(), f"{path}/{name}", name, headers), name)
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            for name in chosen(names, members, path):
                yield from named(parsed(archive.read(name), f"{path}/{name}", name, headers), name)
    else:
        yield from parsed(path.read_bytes(), str(path), path.name, headers)


def chosen(names: Iterable[str], members: Sequence[str], path: Path) -> list[str]:
    """The names in a zip or folder that hold rows."""
    kept = []
    for name in sorted(names):
        base = name.rsplit("/", 1)[-1]
        noted = base.startswith((".", "_")) or base.upper().startswith(("README", "LICENSE", "LICENCE"))
        if any(fnmatch.fnmatch(base, pattern) for pattern in members) if members else not noted:
            kept.append(name)
    if not kept:
        raise InputError(
            f"{path} holds no file named {' or '.join(members) or 'other than notes'}: it has {few(names)}."
        )
    return kept


def named(rows: Iterable[Row], name: str) -> Iterator[Row]:
    for row in rows:
        row.setdefault("file", name)
        yield row


def parsed(content: bytes, path: str, name: str, headers: Headers) -> Iterator[Row]:
    if name.lower().endswith(".gz"):
        content, name = gzip.decompress(content), name[:-3]
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    if suffix == "parquet":
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        return (Row(values, f"{path} row {number}") for number, values in enumerate(table.to_pylist(), 1))
    if suffix == "xml":
        return copa_items(content, path)
    text = decoded(content)
    if suffix in ("csv", "tsv"):
        return table_lines(text, path, "," if suffix == "csv" else "\t", headers)
    return READERS.get(suffix, text_lines)(text, path)


def decoded(content: bytes) -> str:
    """UTF-8 as most files are, else latin-1 as the older ones."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def json_lines(text: str, path: str) -> Iterator[Row]:
    # Not splitlines: that would cut at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path} line {number}"
            yield Row(json_object(line, place), place)


def json_document(text: str, path: str) -> Iterator[Row]:
    try:
        document = json.loads(text)
    except ValueError as error:
        # Files of one object a line are often called .json too.
        first = text.lstrip().split("\n", 1)[0]
        if first.startswith("{") and is_json(first):
            yield from json_lines(text, path)
            return
        raise InputError(f"{path} is not valid JSON ({error}): correct it.") from None
    if isinstance(document, dict):
        # A list under `data` as SQuAD and TriviaQA have it, or one list for each column, or a single row.
        listed = next((document[key] for key in ("data", "Data", "rows", "examples") if is_list(document, key)), None)
        if listed is None and document and all(is_list(document, key) for key in document):
            lengths = {len(column) for column in document.values()}
            if len(lengths) > 1:
                raise InputError(f"{path} has columns of different lengths ({sorted(lengths)}): correct it.")
            listed = [dict(zip(document, values, strict=True)) for values in zip(*document.values(), strict=True)]
        document = [document] if listed is None else listed
    if not isinstance(document, list):
        raise InputError(f"{path} holds {type(document).__name__}, not a list of questions: give one object for each.")
    for number, item in enumerate(document, 1):
        place = f"{path} item {number}"
        values = dict(item.get("row", item)) if isinstance(item, dict) else None
        if values is None:
            raise InputError(f"{place} is {json.dumps(item)[:60]}, not an object: give one object for each question.")
        yield from paragraphs(values, place) if is_list(values, "paragraphs") else [Row(values, place)]


def paragraphs(article: dict[str, Any], place: str) -> Iterator[Row]:
    """The questions of an article in the form of SQuAD's files, as the rows that its hub copy has."""
    for paragraph in article["paragraphs"]:
        for question in paragraph.get("qas", []):
            texts = [answer["text"] for answer in question.get("answers", [])]
            yield Row(
                {
                    "id": question.get("id"),
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {"text": texts},
                },
                f"{place} question {question.get('id', question['question'])}",
            )


def table_lines(text: str, path: str, separator: str, headers: Headers) -> Iterator[Row]:
    # Tab-separated files are written without quoting more often than with it.
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not cells or cells == [""]:
                continue
            place = f"{path} line {reader.line_num}"
            if columns is None:
                columns = layout_of(cells, headers, place)
                if columns is None:
                    columns = [cell.strip() for cell in cells]
                    continue
            if len(cells) != len(columns):
                raise InputError(
                    f"{place} has {len(cells)} cells, not {len(columns)} ({', '.join(columns)}): correct it."
                )
            yield Row(dict(zip(columns, cells, strict=True)), place)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is damaged ({error}): correct it.") from None


def layout_of(cells: Sequence[str], headers: Headers, place: str) -> list[str] | None:
    """The columns of a table whose first line is these cells, or None where that line is the header."""
    known = {name.lower() for names in (*headers.layouts, headers.names) for name in names}
    if not headers.layouts or known & {cell.strip().lower() for cell in cells}:
        return None
    layout = next((list(layout) for layout in headers.layouts if len(layout) == len(cells)), None)
    if layout is None:
        forms = " or ".join(", ".join(layout) for layout in headers.layouts)
        raise InputError(f"{place} is no header and has {len(cells)} cells: give the columns {forms}, or a header.")
    return layout


def text_lines(text: str, path: str) -> Iterator[Row]:
    """Lines of plain text; JSON under another name (as RACE's .txt files are) is read as JSON."""
    if text.lstrip().startswith("{") and is_json(text.strip().split("\n", 1)[0]):
        yield from json_lines(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Row({"text": line.strip("\r")}, f"{path} line {number}")


def copa_items(content: bytes, path: str) -> Iterator[Row]:
    """COPA's XML as rows with the columns and labels that the hub's copy has."""
    try:
        root = xml.etree.ElementTree.fromstring(content)
    except xml.etree.ElementTree.ParseError as error:
        raise InputError(f"{path} is not valid XML ({error}): correct it.") from None
    items = list(root.iter("item"))
    if not items:
        raise InputError(f"{path} has no <item>: of XML files only COPA's form is read; give json, csv or tsv.")
    for item in items:
        place = f"{path} item {item.get('id')}"
        best = item.get("most-plausible-alternative", "")
        if best not in ("1", "2"):
            raise InputError(f"{place} has most-plausible-alternative {best!r}: it is 1 or 2.")
        texts = {tag: (item.findtext(tag) or "").strip() for tag in ("p", "a1", "a2")}
        yield Row(
            {
                "premise": texts["p"],
                "choice1": texts["a1"],
                "choice2": texts["a2"],
                "question": item.get("asks-for"),
                "label": int(best) - 1,
            },
            place,
        )


READERS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    "jsonl": json_lines,
    "ndjson": json_lines,
    "json": json_document,
}


def json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not valid JSON ({error}): correct or remove it.") from None
    if not isinstance(value, dict):
        raise InputError(f"{place} is {line.strip()[:60]}, not an object: give one object on each line.")
    return value


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_list(document: dict[str, Any], key: str) -> bool:
    return isinstance(document.get(key), list)


def few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
