"""Deduplication, over all files: pairs of documents from a part of their keys, which of them are similar, and the clusters.

Documents are numbered through all files. What looks at a part of the rows knows nothing of other parts; what looks at all
documents does little with each, and holds 10 bytes for it in mapped files at most.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clusters import CHUNK, Clusters, first_pairs, groups, near_pairs
from data_prep.dedup_files import REPEAT, sets_name
from data_prep.disk_arrays import Lists, Rows, RowWriter, mapped, zeros
from data_prep.minhash import limited, similarities
from data_prep.units import Record

PAIRS = "pairs"
MARKS, ROOTS, REPEATS = "marks", "roots", "repeats"
PAIRS_AT_ONCE = 2**15
SETS_AT_ONCE = 2**23
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, which spreads successive numbers evenly (Knuth, The Art of Computer Programming 3, section 6.4)."""
GATHER = np.uint64(pow(int(SPREAD), -1, 2**64))


class PairWriter:
    """Writes pairs of numbers so that parts of them are of like size: the first ones are often small. A context manager.

    A pair is a row of the first number times SPREAD, modulo 2^64, and the second one.
    """

    def __init__(self, folder: Path):
        self._rows = RowWriter(folder, PAIRS, 2, unique=True)

    def __enter__(self) -> "PairWriter":
        self._rows.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._rows.__exit__(*error)

    def add(self, pairs: np.ndarray) -> None:
        rows = pairs.astype(np.uint64)
        rows[:, 0] *= SPREAD
        self._rows.add(rows)


def pairs_in(rows: np.ndarray) -> np.ndarray:
    """The pairs, int64, of rows that a PairWriter has written."""
    rows[:, 0] *= GATHER
    return rows.astype(np.int64)


def first_pairs_of_part(rows: Rows, part: int, parts: int, target: Path) -> Record:
    """Write, for one part of the rows, pairs of the first document that has a key with each other one that has it."""
    with PairWriter(target) as writer:
        for found in groups(rows.chunks(part, parts), rows.columns - 1, 0):
            writer.add(first_pairs(found))
    return {}


def near_pairs_of_part(rows: Rows, roots: Path, window: int, part: int, parts: int, target: Path) -> Record:
    """Write, for one part of the rows, pairs of documents that share a key and do not hang together yet."""
    known = mapped(roots, np.int64)
    with PairWriter(target) as writer:
        for found in groups(rows.chunks(part, parts), rows.columns - 1, window):
            for pairs in near_pairs(found, window, known):
                writer.add(pairs)
    return {}


def mark(pairs: Rows, columns: slice, firsts: Sequence[int], target: Path) -> Record:
    """Write which documents are named in these columns of the pairs, a bool for each; returns the digest of each file's part."""
    marks = zeros(target / MARKS, firsts[-1], bool)
    for chunk in pairs.every():
        marks[pairs_in(chunk)[:, columns].ravel()] = True
    return {"slices": [sha256(marks[begin:end]) for begin, end in pairwise(firsts)]}


@dataclass(frozen=True)
class Sets:
    """The sets of N-grams of documents, which lie in a folder a file of documents."""

    folders: tuple[Path, ...]
    firsts: tuple[int, ...]
    """The number of the first document of each file."""
    sides: int

    def sizes(self, numbers: np.ndarray) -> np.ndarray:
        """How many N-grams each of these documents, in ascending order, has on all sides; int64."""
        found = np.zeros(len(numbers), np.int64)
        for side in range(self.sides):
            for lists, own, inside in self._by_file(numbers, side):
                found[own] += lists.lengths(inside)
        return found

    def load(self, numbers: np.ndarray, side: int) -> Lists:
        """The sets of these documents, in ascending order, in memory."""
        values, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for lists, _, inside in self._by_file(numbers, side):
            taken = lists.take(inside)
            values.append(taken[0])
            lengths.append(taken[1])
        return Lists(np.concatenate(values), np.cumsum(np.concatenate(lengths)))

    def _by_file(self, numbers: np.ndarray, side: int) -> Iterator[tuple[Lists, slice, np.ndarray]]:
        files = np.searchsorted(np.asarray(self.firsts), numbers, side="right") - 1
        bounds = np.flatnonzero(np.r_[True, files[1:] != files[:-1], True]) if len(files) else np.zeros(1, np.int64)
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            file = int(files[begin])
            lists = Lists.mapped(self.folders[file] / sets_name(side), np.uint64)
            yield lists, slice(begin, end), numbers[begin:end] - self.firsts[file]


def similar_in_part(rows: Rows, sets: Sets, least: float, part: int, parts: int, target: Path) -> Record:
    """Write pairs that hang together what pairs of one part do whose similarity, on all sides, is at least so high."""
    compared = 0
    with PairWriter(target) as writer:
        for chunk in rows.chunks(part, parts):
            numbers, places = np.unique(pairs_in(chunk), return_inverse=True)
            clusters = Clusters(np.arange(len(numbers)))
            sizes = sets.sizes(numbers)
            for pairs in in_turn(places.reshape(-1, 2)):
                # What hangs together already need not be compared: it changes no cluster.
                apart = pairs[clusters.roots(pairs[:, 0]) != clusters.roots(pairs[:, 1])]
                for few in limited(sizes[apart].sum(axis=1), SETS_AT_ONCE):
                    clusters.join(*similar(apart[few], numbers, sets, least).T)
                compared += len(apart)
            roots = clusters.roots(np.arange(len(numbers)))
            below = np.flatnonzero(roots != np.arange(len(numbers)))
            writer.add(np.stack([numbers[roots[below]], numbers[below]], axis=1))
    return {"compared": compared}


def in_turn(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Different pairs, in pieces; first the first of each number, which is often all that is needed."""
    pairs = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    pairs = np.stack([pairs >> 32, pairs & (2**32 - 1)], axis=1)
    leading = np.zeros(len(pairs), bool)
    leading[np.unique(pairs[:, 1], return_index=True)[1]] = True
    for own in (pairs[leading], pairs[~leading]):
        for begin in range(0, len(own), PAIRS_AT_ONCE):
            yield own[begin : begin + PAIRS_AT_ONCE]


def similar(pairs: np.ndarray, numbers: np.ndarray, sets: Sets, least: float) -> np.ndarray:
    """Those pairs of places in `numbers` that are at least so similar."""
    if len(pairs) == 0:
        return pairs
    wanted, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    found = [similarities(sets.load(numbers[wanted], side), places) for side in range(sets.sides)]
    return pairs[np.minimum.reduce(found) >= least]


def join(pairs: Rows, count: int, target: Path) -> Record:
    """Write the root of each document, int64, when pairs are joined."""
    clusters = Clusters(zeros(target / ROOTS, count, np.int64))
    for chunk in pairs.every():
        clusters.join(*pairs_in(chunk).T)
    for begin in range(0, count, CHUNK):
        clusters.roots(np.arange(begin, min(begin + CHUNK, count)))  # Which hangs all directly below their roots.
    return {}


def cluster(
    equal: Rows, near: Sequence[Rows], firsts: Sequence[int], labels: Sequence[str], places: bool, target: Path
) -> Record:
    """Put together what hangs together and write what is dropped, a REPEAT each.

    Args:
        firsts: the number of the first document of each file, and of all documents.
        labels: what matters of each file where a document of it is kept instead of another.
        places: whether the place of that document in its file matters, too.

    Returns:
        What each file's part of it is: how many documents are dropped, and a digest of all that matters of them.
    """
    parent, exact = zeros(target / ROOTS, firsts[-1], np.int64), zeros(target / MARKS, firsts[-1], bool)
    clusters = Clusters(parent)
    for chunk in equal.every():
        pairs = pairs_in(chunk)
        clusters.join(*pairs.T)
        exact[pairs[:, 1]] = True
    for rows in near:
        for chunk in rows.every():
            clusters.join(*pairs_in(chunk).T)
    starts = np.asarray(firsts)
    known, names = np.unique(np.array(labels, object), return_inverse=True)
    counts, digests = [], []
    with open(target / REPEATS, "wb") as stream:
        for begin, end in pairwise(firsts):
            numbers = np.arange(begin, end)
            roots = clusters.roots(numbers)
            below = np.flatnonzero(roots != numbers)
            found = np.empty(len(below), REPEAT)
            found["row"], found["exact"] = below, exact[begin:end][below]
            found["kept_file"] = np.searchsorted(starts, roots[below], side="right") - 1
            found["kept_row"] = roots[below] - starts[found["kept_file"]]
            found.tofile(stream)
            counts.append(len(below))
            digests.append(meaning(found, names, known, places))
    del parent, exact, clusters  # Network file systems keep the place of a mapped file that is deleted.
    for name in (ROOTS, MARKS):
        (target / name).unlink(missing_ok=True)
    return {"counts": counts, "slices": digests}


def meaning(repeats: np.ndarray, names: np.ndarray, known: np.ndarray, places: bool) -> str:
    """A digest of what is dropped and of the label of what is kept instead, whatever other files there are.

    Args:
        names: the place in `known` of each file's label.
    """
    used, files = np.unique(names[repeats["kept_file"]], return_inverse=True)
    digest = hashlib.sha256("\n".join(known[used]).encode())
    columns = [repeats["row"], repeats["exact"], files.astype(np.int64), *([repeats["kept_row"]] if places else [])]
    for column in columns:
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
