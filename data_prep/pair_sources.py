"""Pairs of a text and its target (a translation, a pronunciation, a label) from tables and from gettext catalogues."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.catalogues import catalogue
from data_prep.files import InputError
from data_prep.rows import content_id
from data_prep.sources import EncodedFileSource
from data_prep.table_sources import check_column, check_separator, column_number, table_rows, too_few

Form = Literal["plain", "characters"]


@dataclass(frozen=True, kw_only=True)
class Pairs(EncodedFileSource):
    """Tables of text, one pair a line (also compressed): TSV as it is, CSV with `separator: ","` and `quotes: true`.

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
        check_separator(self.separator, self.quotes)
        if self.columns is not None and (self.quotes or self.columns < 2):
            raise InputError(f"`columns` is {self.columns}: it must be at least 2, and does not go with `quotes`.")
        for name, column in (("text_column", self.text_column), ("target_column", self.target_column)):
            check_column(name, column, self.header)
        try:
            re.compile(self.skip or "")
        except re.error as error:
            raise InputError(f"`skip` is {self.skip!r}, which is no regular expression ({error}).") from None

    def rows(self, path: Path, name: str, counts: dict[str, int]) -> Iterator[tuple[str, str, str]]:
        pattern = re.compile(self.skip) if self.skip else None
        rows = table_rows(self, path, self.separator, self.quotes, self.columns)
        _, header = next(rows, (0, [])) if self.header else (0, [])
        text_column, target_column = (column_number(c, header, path) for c in (self.text_column, self.target_column))
        for line, row in rows:
            if pattern and pattern.search(self.separator.join(row)):
                counts["skipped_lines"] += 1
            elif len(row) > max(text_column, target_column):
                text = formed(row[text_column], self.text_form)
                yield content_id(name, text), text, formed(row[target_column], self.target_form)
            elif self.skip_bad:
                counts["bad_lines"] += 1
            else:
                raise too_few(path, line, row, max(text_column, target_column))


def formed(text: str, form: Form) -> str:
    return " ".join(text) if form == "characters" else text


@dataclass(frozen=True, kw_only=True)
class Gettext(EncodedFileSource):
    """Catalogues of translated messages (`.po`): each message and its translation is a pair.

    Of a message with plural forms the singular goes with the first form and the plural with the last. Untranslated and
    fuzzy messages are left out and counted; the header and obsolete messages are left out. Ids are made as by `Pairs`.
    """

    pairs = True
    counts = ("untranslated", "fuzzy")

    take_fuzzy: bool = False
    """Take translations that are marked as fuzzy, too."""
    swap: bool = False
    """The translation is the text and the message its target."""

    def rows(self, path: Path, name: str, counts: dict[str, int]) -> Iterator[tuple[str, str, str]]:
        for message in catalogue(self.lines(path), path):
            if message.fuzzy and not self.take_fuzzy:
                counts["fuzzy"] += 1
                continue
            for text, target in message.pairs():
                if not target:
                    counts["untranslated"] += 1
                    continue
                text, target = (target, text) if self.swap else (text, target)
                yield content_id(name, text), text, target
