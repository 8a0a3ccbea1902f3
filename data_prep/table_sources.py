"""Tables of text, one row a line: CSV, TSV and the like. `pair_sources` reads pairs from them, `Csv` documents."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import InputError
from data_prep.rows import content_id
from data_prep.sources import Documents, EncodedFileSource

# The csv module's own limit of 131,072 is below the length of many documents. An open quote ends here at the latest.
FIELD_CHARACTERS = 2**27


@dataclass(frozen=True, kw_only=True)
class Csv(EncodedFileSource):
    """CSV or TSV with a column of text (also compressed), as spreadsheets and pandas write it."""

    counts = ("bad_lines",)

    separator: str | None = None
    """What stands between columns. Unset: a tab in files named `.tsv` or `.tab`, a comma in all others."""
    quotes: bool = True
    """Columns may stand in double quotes: separators and line ends inside are text, and "" is a quote."""
    header: bool = True
    """The first line of each file names the columns."""
    text_column: int | str = "text"
    """The column of the text: a name or, without `header` too, a number counted from 0."""
    id_column: int | str | None = None
    """The column that holds a stable id. Unset: the id is made from the text."""
    skip_bad: bool = False
    """Leave out and count lines with too few columns, instead of stopping at the first."""

    def __post_init__(self) -> None:
        if self.separator is not None:
            check_separator(self.separator, self.quotes)
        for name, column in (("text_column", self.text_column), ("id_column", self.id_column)):
            check_column(name, column, self.header)

    def rows(self, path: Path, name: str, counts: dict[str, int]) -> Documents:
        tabs = ".tsv" in path.suffixes or ".tab" in path.suffixes
        separator = self.separator or ("\t" if tabs else ",")
        rows = table_rows(self, path, separator, self.quotes)
        _, header = next(rows, (0, [])) if self.header else (0, [])
        if self.header and not header:
            return  # An empty file.
        text_column = column_number(self.text_column, header, path)
        id_column = column_number(self.id_column, header, path) if self.id_column is not None else None
        last = max(text_column, id_column or 0)
        for line, row in rows:
            if len(row) > last:
                text = row[text_column]
                yield content_id(name, text) if id_column is None else row[id_column], text
            elif self.skip_bad:
                counts["bad_lines"] += 1
            else:
                raise too_few(path, line, row, last)


def check_separator(separator: str, quotes: bool) -> None:
    if not separator or (quotes and len(separator) > 1):
        raise InputError(f"`separator` is {separator!r}: give a text, and with `quotes` a single character.")


def check_column(name: str, column: int | str | None, header: bool) -> None:
    if isinstance(column, str) and not header:
        raise InputError(f"`{name}` is {column!r}: set `header: true` to name columns, or give a number.")
    if isinstance(column, int) and column < 0:
        raise InputError(f"`{name}` is {column}: columns are counted from 0.")


def table_rows(
    source: EncodedFileSource, path: Path, separator: str, quotes: bool, columns: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The columns of each row that has text, and the number of the line that it ends in."""
    if not quotes:
        splits = columns - 1 if columns else -1
        for number, line in enumerate(source.lines(path), 1):
            row = line.removesuffix("\r").split(separator, splits)
            if not all(map(blank, row)):
                yield number, row
        return
    csv.field_size_limit(FIELD_CHARACTERS)
    reader = csv.reader((f"{line}\n" for line in source.lines(path)), delimiter=separator, strict=True)
    try:
        for row in reader:
            if not all(map(blank, row)):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(
            f"{path} line {reader.line_num} is not CSV ({error}): mend it, or set `quotes: false` where quotation "
            "marks are text."
        ) from None


def blank(column: str) -> bool:
    return not column.strip()


def column_number(column: int | str, header: list[str], path: Path) -> int:
    """The number of a column that is given by name or number."""
    if isinstance(column, int):
        return column
    if column not in header:
        raise InputError(
            f"{path} has no column {column!r}, only {', '.join(header)}: set the source's `text_column`, `target_column` or `id_column`."
        )
    return header.index(column)


def too_few(path: Path, line: int, row: list[str], last: int) -> InputError:
    return InputError(
        f"{path} line {line} has {len(row)} column(s), so none with number {last} counted from 0: mend the line, set "
        "`separator` to what stands between columns, or leave such lines out with `skip_bad: true`."
    )
