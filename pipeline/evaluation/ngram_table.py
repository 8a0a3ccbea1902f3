"""A table of N-grams on disk, larger than memory: hashes in rising order, each with the step that read it first, and where.

It is sorted in parts, which are merged a range of hashes at a time. Hashes are evenly spread, so the ranges are alike in size. What is
held in memory does not depend on how many there are: a few copies of PART N-grams.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PART = 1 << 21
"""N-grams that are sorted at once: 42 MB, of which sorting takes a few copies."""

TYPES = {"hashes": "<u8", "steps": "<i4", "places": "<i8"}


@dataclass(frozen=True)
class Grams:
    """N-grams, in columns of equal length."""

    hashes: np.ndarray
    """uint64."""
    steps: np.ndarray
    """By which each is read, counted from 1: int32."""
    places: np.ndarray
    """Where each begins: int64."""

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: np.ndarray | slice) -> "Grams":
        return Grams(self.hashes[rows], self.steps[rows], self.places[rows])

    @classmethod
    def joined(cls, several: list["Grams"]) -> "Grams":
        return cls(*(np.concatenate([getattr(grams, name) for grams in several]) for name in TYPES))

    def append_to(self, folder: Path) -> None:
        for name, kind in TYPES.items():
            with open(folder / f"{name}.bin", "ab") as file:
                getattr(self, name).astype(kind, copy=False).tofile(file)


class Table:
    """A table that was written; only what is looked up is read.

    Args:
        folder: that `write_table` filled.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __len__(self) -> int:
        return (self.folder / "hashes.bin").stat().st_size // 8

    @property
    def bytes(self) -> int:
        return sum((self.folder / f"{name}.bin").stat().st_size for name in TYPES)

    def column(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.bin"
        return np.memmap(path, TYPES[name], "r") if len(self) else np.empty(0, TYPES[name])  # No empty file is mapped.

    def read(self, start: int, stop: int) -> Grams:
        """The N-grams of these rows, in memory."""
        columns = {
            name: np.fromfile(self.folder / f"{name}.bin", kind, stop - start, offset=start * np.dtype(kind).itemsize)
            for name, kind in TYPES.items()
        }
        return Grams(**columns)

    def bounds(self, ranges: int) -> np.ndarray:
        """Where each of so many equal ranges of hashes begins, and where the last one ends: int64 of shape (ranges + 1,)."""
        begins = np.array([number * 2**64 // ranges for number in range(ranges)], np.uint64)
        return np.append(np.searchsorted(self.column("hashes"), begins), len(self))

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, Grams]:
        """Which of these hashes there are (indices into them), and their rows."""
        column = self.column("hashes")
        rows = np.searchsorted(column, hashes)
        rows[rows == len(column)] = 0
        found = np.flatnonzero(column[rows] == hashes) if len(column) else np.empty(0, np.int64)
        return found, Grams(hashes[found], self.column("steps")[rows[found]], self.column("places")[rows[found]])


def write_table(folder: Path, source: Iterator[Grams]) -> None:
    """Fill an existing folder with a table of all these N-grams, of equal hashes the one with the earliest step.

    What a killed call leaves there is no table.
    """
    parts: list[Table] = []
    waiting: list[Grams] = []

    def finish_part() -> None:
        path = folder / f"part-{len(parts):05d}"
        path.mkdir()
        earliest(Grams.joined(waiting)).append_to(path)
        parts.append(Table(path))
        waiting.clear()

    for grams in source:
        waiting.append(grams)
        if sum(map(len, waiting)) >= PART:
            finish_part()
    if waiting:
        finish_part()
    for name in TYPES:
        (folder / f"{name}.bin").touch()
    ranges = max(1, -(-sum(map(len, parts)) // PART))
    bounds = [part.bounds(ranges) for part in parts]
    for number in range(ranges if parts else 0):
        slices = [part.read(*bound[number : number + 2]) for part, bound in zip(parts, bounds, strict=True)]
        earliest(Grams.joined(slices)).append_to(folder)
    for part in parts:
        shutil.rmtree(part.folder)


def earliest(grams: Grams) -> Grams:
    """By rising hash, of equal hashes the one with the earliest step (the first place of those)."""
    order = np.argsort(grams.hashes)
    hashes = grams.hashes[order]
    follows = np.zeros(len(hashes), bool)
    follows[1:] = hashes[1:] == hashes[:-1]
    # Only what has an equal is sorted by step, too.
    several = np.flatnonzero(follows | np.roll(follows, -1))
    rows = order[several]
    order[several] = rows[np.lexsort((grams.places[rows], grams.steps[rows], grams.hashes[rows]))]
    return grams.take(order[~follows])
