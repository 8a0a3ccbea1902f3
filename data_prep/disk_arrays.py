"""Arrays that are larger than memory: rows in ascending order, read by ranges of their first column, and lists of unequal length.

Writers hold about BUFFER_BYTES. What is mapped from a file is the kernel's to keep or to let go.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

PART_BYTES = 32 * 2**20
FEW_PARTS, LEAST_PART_BYTES = 8, 2**21
"""How large a part of rows is meant to be, and half of what is read at once of one that is larger."""
BUFFER_BYTES = 32 * 2**20
MAX_PARTS = 4096
ALL_HASHES = 2**64


class RowWriter:
    """Writes rows of uint64, each file of them in ascending order: `<name>-00000` and its successors. A context manager.

    Args:
        unique: leave out rows that a file has already.
    """

    def __init__(self, folder: Path, name: str, columns: int, unique: bool = False):
        self.folder, self.name, self.columns, self.unique = folder, name, columns, unique
        self._files = 0
        self._pending: list[np.ndarray] = []
        self._pending_bytes = 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()

    def add(self, rows: np.ndarray) -> None:
        """Append rows of shape (rows, columns)."""
        if len(rows) == 0:
            return
        self._pending.append(np.ascontiguousarray(rows, np.uint64))
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._pending_bytes = [], 0
        rows = ascending(rows)
        if self.unique:
            rows = rows[np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)]]
        rows.tofile(self.folder / f"{self.name}-{self._files:05d}")
        self._files += 1


def ascending(rows: np.ndarray) -> np.ndarray:
    """The rows in ascending order, by their first column and then by the others."""
    rows = rows[np.argsort(rows[:, 0])]
    # One column alone sorts many times faster, and most hashes are there once.
    same = rows[1:, 0] == rows[:-1, 0]
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
    among = rows[tied]
    rows[tied] = among[np.lexsort(among.T[::-1])]
    return rows


@dataclass(frozen=True)
class Rows:
    """Rows that RowWriters have written, one after the other.

    A part of them has those whose first column is in one of as many equal ranges of 64-bit numbers. The column has to be spread
    evenly, as hashes are, for parts to be of like size.
    """

    files: tuple[Path, ...]
    columns: int
    firsts: tuple[int, ...] = ()
    """What is to be added to the last column of each file: numbers of documents in a file become those of the corpus."""

    @property
    def row_bytes(self) -> int:
        return 8 * self.columns

    def chunks(self, part: int, parts: int) -> Iterator[np.ndarray]:
        """The rows of one part, of shape (rows, columns), in pieces of at most twice PART_BYTES.

        Pieces ascend in the first column, and rows in which it is equal are in one piece, unless these alone are more.
        Inside a piece, files come one after the other.
        """
        low, high = (ALL_HASHES * place // parts for place in (part, part + 1))
        yield from self._between(low, high, range(len(self.files)))

    def every(self) -> Iterator[np.ndarray]:
        """All rows, in pieces, file by file."""
        for file in range(len(self.files)):
            yield from self._pieces(file, 0, len(self._mapped(file)))

    def _between(self, low: int, high: int, files: Iterable[int]) -> Iterator[np.ndarray]:
        spans = [(file, *self._span(file, low, high)) for file in files]
        spans = [(file, begin, end) for file, begin, end in spans if begin < end]
        if not spans:
            return
        if sum(end - begin for _, begin, end in spans) * self.row_bytes <= 2 * PART_BYTES:
            yield np.concatenate([self._read(*span) for span in spans])
        elif high - low > 1:
            middle = (low + high) // 2
            for half in ((low, middle), (middle, high)):
                yield from self._between(*half, [file for file, _, _ in spans])
        else:
            for span in spans:
                yield from self._pieces(*span)

    def _mapped(self, file: int) -> np.ndarray:
        return mapped(self.files[file], np.uint64).reshape(-1, self.columns)

    def _span(self, file: int, low: int, high: int) -> tuple[int, int]:
        keys = self._mapped(file)[:, 0]
        end = len(keys) if high == ALL_HASHES else int(np.searchsorted(keys, np.uint64(high)))
        return int(np.searchsorted(keys, np.uint64(low))), end

    def _pieces(self, file: int, begin: int, end: int) -> Iterator[np.ndarray]:
        step = max(1, 2 * PART_BYTES // self.row_bytes)
        for start in range(begin, end, step):
            yield self._read(file, start, min(start + step, end))

    def _read(self, file: int, begin: int, end: int) -> np.ndarray:
        rows = np.array(self._mapped(file)[begin:end])
        if self.firsts:
            rows[:, -1] += np.uint64(self.firsts[file])
        return rows


def parts_of(size: int, part_bytes: int) -> int:
    """In how many parts so many bytes are looked at; in a few also where they would be one part, for more than one process."""
    return min(MAX_PARTS, max(1, -(-size // part_bytes), min(FEW_PARTS, size // LEAST_PART_BYTES)))


class ListWriter:
    """Writes lists of unequal length, one after the other, to a file. A context manager."""

    def __init__(self, path: Path, dtype: Any):
        self.dtype = np.dtype(dtype)
        self._end = 0
        self._values = open(path, "wb")
        self._ends = open(ends_path(path), "wb")

    def __enter__(self) -> "ListWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._values.close()
        self._ends.close()

    def add(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Append lists of these lengths, given in one piece."""
        values.astype(self.dtype, copy=False).tofile(self._values)
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        ends.tofile(self._ends)
        self._end = int(ends[-1]) if len(ends) else self._end


@dataclass(frozen=True)
class Lists:
    """Lists of unequal length in one piece, each found by its number."""

    values: np.ndarray
    ends: np.ndarray
    """Where each list ends, int64."""

    @classmethod
    def mapped(cls, path: Path, dtype: Any) -> "Lists":
        """What a ListWriter has written."""
        return cls(mapped(path, dtype), mapped(ends_path(path), np.int64))

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """The length of each of these lists, int64."""
        return self.ends[numbers] - self._starts(numbers)

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of these lists in one piece, and the length of each."""
        starts, lengths = self._starts(numbers), self.lengths(numbers)
        before = np.cumsum(lengths) - lengths
        places = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
        return self.values[places], lengths

    def _starts(self, numbers: np.ndarray) -> np.ndarray:
        return np.where(numbers > 0, self.ends[numbers - 1], 0)


def ends_path(path: Path) -> Path:
    return path.with_suffix(".ends")


def mapped(path: Path, dtype: Any) -> np.ndarray:
    """The values of a file, read when they are looked at."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def zeros(path: Path, count: int, dtype: Any) -> np.ndarray:
    """An array of zeros in a file, to be written to."""
    if count == 0:
        path.touch()
        return np.empty(0, dtype)
    with open(path, "wb") as stream:
        # Its place on the disk is taken now: a full disk is an error here, and would end the process in a mapped file.
        os.posix_fallocate(stream.fileno(), 0, count * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=(count,))
