"""Pairs of a text and its target (a translation, a pronunciation, a label), read from tables of two or more columns."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.files import InputError
from data_prep.sources import EncodedFileSource, content_id

Form = Literal["plain", "characters"]


@dataclass(frozen=True, kw_only=True)
class Pairs(EncodedFileSource):
    """Tables of text, one pair a line (also `.gz`): TSV as it is, CSV with `separator: ","` and `quotes: true`.

    The id of a pair is the file and a hash of the text, so all targets that a file has for one text share a split.
    """

    pairs = True
    counts = ("skipped_lines", "bad_lines")

    separator: str = "\t"
    """What stands between columns."""
    quotes: bool = False
    """Columns may stand in double quotes, as in CSV: separators and line ends inside are text, and "" is a quote."""
    columns: int | None = None
    """Divide a line into so many columns at most; the last takes the rest of the line. Not with `quotes`."""
    header: bool = False
    """The first line of each file names the columns."""
    text_column: int | str = 0
    """The column of the text: a number counted from 0 or, with `header`, a name."""
    target_column: int | str = 1
    """The column of the target: a number counted from 0 or, with `header`, a name."""
    text_form: Form = "plain"
    """With `characters`, a blank is put between the characters of the text, so that each is a word."""
    target_form: Form = "plain"
    """The same for the target."""
    skip: str | None = None
    """Leave out lines in which this regular expression is found."""
    skip_bad: bool = False
    """Leave out and count lines with too few columns, instead of stopping at the first."""

    def __post_init__(self) -> None:
        if not self.separator or (self.quotes and len(self.separator) > 1):
            raise InputError(f"`separator` is {self.separator!r}: give a text, and with `quotes` a single character.")
        if self.columns is not None and (self.quotes or self.columns < 2):
            raise InputError(f"`columns` is {self.columns}: it must be at least 2, and does not go with `quotes`.")
        for name, column in (("text_column", self.text_column), ("target_column", self.target_column)):
            if isinstance(column, str) and not self.header:
                raise InputError(f"`{name}` is {column!r}: set `header: true` to name columns, or give a number.")
            if isinstance(column, int) and column < 0:
                raise InputError(f"`{name}` is {column}: columns are counted from 0.")
        try:
            re.compile(self.skip or "")
        except re.error as error:
            raise InputError(f"`skip` is {self.skip!r}, which is no regular expression ({error}).") from None

    def documents(self, workers: int, origin: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        origin |= dict.fromkeys(self.counts, 0)
        pattern = re.compile(self.skip) if self.skip else None
        for path, name in self.matches():
            rows = ((line, row) for line, row in self._rows(path) if any(column.strip() for column in row))
            _, header = next(rows, (0, [])) if self.header else (0, [])
            text_column, target_column = (self._place(c, header, path) for c in (self.text_column, self.target_column))
            for line, row in rows:
                if pattern and pattern.search(self.separator.join(row)):
                    origin["skipped_lines"] += 1
                elif len(row) > max(text_column, target_column):
                    text = formed(row[text_column], self.text_form)
                    yield content_id(name, text), text, formed(row[target_column], self.target_form)
                elif self.skip_bad:
                    origin["bad_lines"] += 1
                else:
                    raise InputError(
                        f"{path} line {line} has {len(row)} column(s), so none with number "
                        f"{max(text_column, target_column)} counted from 0: mend the line, set `separator` to what "
                        "stands between columns, or leave such lines out with `skip_bad: true`."
                    )

    def _rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """The columns of each row, and the number of the line that it ends in."""
        if not self.quotes:
            splits = self.columns - 1 if self.columns else -1
            for number, line in enumerate(self.lines(path), 1):
                yield number, line.removesuffix("\r").split(self.separator, splits)
            return
        reader = csv.reader((f"{line}\n" for line in self.lines(path)), delimiter=self.separator, strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise InputError(
                f"{path} line {reader.line_num} is not CSV ({error}): mend it, or set `quotes: false` where quotation "
                "marks are text."
            ) from None

    def _place(self, column: int | str, header: list[str], path: Path) -> int:
        """The number of a column that is given by name or number."""
        if isinstance(column, int):
            return column
        if column not in header:
            raise InputError(
                f"{path} has no column {column!r}, only {', '.join(header)}: set `text_column` and `target_column`."
            )
        return header.index(column)


def formed(text: str, form: Form) -> str:
    return " ".join(text) if form == "characters" else text
