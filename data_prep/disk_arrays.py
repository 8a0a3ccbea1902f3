"""Arrays that are larger than memory: rows divided into parts that can be sorted one by one, and lists of unequal length.

Writers hold at most BUFFER_BYTES. What is mapped from a file is the kernel's to keep or to let go.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PART_BYTES = 32 * 2**20
BUFFER_BYTES = 32 * 2**20
MAX_PARTS = 4096


class Partitions:
    """Rows of uint64 of shape (rows, columns), divided by the range of their first column into files of about PART_BYTES.

    The first column has to be spread evenly over 0 .. `bound` - 1, as hashes are, for the parts to be of that size;
    rows whose first columns are equal are in one part, however many there are. Inside a part they stand as they came.
    """

    def __init__(self, folder: Path, columns: int, expected_rows: int, bound: int = 2**64):
        self.folder, self.columns = folder, columns
        self.row_bytes = 8 * columns
        self.count = int(min(MAX_PARTS, max(1, -(-expected_rows * self.row_bytes // PART_BYTES))))
        self._width = np.uint64(min(bound // self.count + 1, 2**64 - 1))
        self._pending: list[np.ndarray] = []
        self._pending_bytes = 0
        folder.mkdir(parents=True)

    def add(self, rows: np.ndarray) -> None:
        if len(rows) == 0:
            return
        self._pending.append(np.ascontiguousarray(rows, np.uint64))
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._pending_bytes = [], 0
        parts = np.minimum(rows[:, 0] // self._width, np.uint64(self.count - 1)).astype(np.int64)
        if self.count > 1:
            order = np.argsort(parts, kind="stable")
            rows, parts = rows[order], parts[order]
        bounds = np.searchsorted(parts, np.arange(self.count + 1))
        for part in np.flatnonzero(np.diff(bounds)):
            with open(self._path(int(part)), "ab") as stream:
                rows[bounds[part] : bounds[part + 1]].tofile(stream)

    def chunks(self, part: int) -> Iterator[np.ndarray]:
        """The rows of one part, of shape (rows, columns): once where it has its size, else in pieces of it."""
        self.flush()
        if self._path(part).is_file():
            with open(self._path(part), "rb") as stream:
                # Twice the size before a part is cut, since hashes are not spread quite evenly.
                while len(rows := np.fromfile(stream, np.uint64, 2 * PART_BYTES // self.row_bytes * self.columns)):
                    yield rows.reshape(-1, self.columns)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:05d}"


class Lists:
    """Lists of unequal length, one after the other in a file, each found by its number. Call `finish` before `take`."""

    def __init__(self, path: Path, dtype: Any):
        self.path, self.dtype = path, np.dtype(dtype)
        self.count = 0
        self._end = 0
        self._values = open(path, "wb")
        self._ends = open(path.with_suffix(".ends"), "wb")

    def add(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Append lists of these lengths, given in one piece."""
        values.astype(self.dtype, copy=False).tofile(self._values)
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        ends.tofile(self._ends)
        self.count += len(ends)
        self._end = int(ends[-1]) if len(ends) else self._end

    def finish(self) -> None:
        self._values.close()
        self._ends.close()
        self.values = mapped(self.path, self.dtype)
        self.ends = mapped(self.path.with_suffix(".ends"), np.int64)

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


def mapped(path: Path, dtype: Any) -> np.ndarray:
    """The values of a file, read when they are looked at."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def zeros(path: Path, count: int, dtype: Any) -> np.ndarray:
    """An array of zeros in a file, to be written to."""
    if count == 0:
        return np.empty(0, dtype)
    with open(path, "wb") as stream:
        # Its place on the disk is taken now: a full disk is an error here, and would end the process in a mapped file.
        os.posix_fallocate(stream.fileno(), 0, count * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=(count,))
