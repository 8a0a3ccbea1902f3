"""Where a corpus repeats the N-grams of test sets: their hashes in sorted arrays, looked up for a batch of documents at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import document
from data_prep.files import InputError, read_json, write_json
from data_prep.ngrams import SPACE, code_points, find_words, kinds_of_characters, ngram_hashes

CHUNK_CHARACTERS = 2**19
FILTER_SLOTS = 16  # For each N-gram of the tests; so one in 16 of others passes the filter, and is looked up.
LARGEST_FILTER = 2**28
ARRAYS, COUNTS = "tests.npz", "tests.json"

HITS = pa.schema({"row": pa.int32(), "side": pa.int8(), "start": pa.int64(), "end": pa.int64(), "ngram": pa.int64()})
"""An N-gram of the tests in a document of a batch: the document's row, 0 for its text or 1 for its target, the characters from
white space to white space, and the N-gram's number in `TestNgrams.hashes`."""


class TestNgrams:
    """The N-grams of all test sets: about 50 bytes for each that is different, whatever the corpus.

    Args:
        test_sets: the examples of each.
        n: words of an N-gram.
        least_words: an example with fewer than n words, but not fewer than this, is looked for as a whole.

    Attributes:
        hashes: of the different N-grams, sorted, uint64.
        lengths: how many words they have: n, and the lengths of the short examples that are looked for.
        members: which of `hashes` each test set has, sorted.
        counts: of each test set, its examples, those that are too short to be looked for, and its different N-grams.

    Raises:
        InputError: no test set has an N-gram.
    """

    __test__ = False  # To pytest, which collects what is called Test.

    def __init__(self, test_sets: Mapping[str, Iterable[str]], n: int, least_words: int):
        own: dict[str, np.ndarray] = {}
        self.lengths: set[int] = set()
        self.counts: dict[str, dict[str, int]] = {}
        for name, examples in test_sets.items():
            parts: list[np.ndarray] = []
            count = short = 0
            for example in examples:
                words = find_words(example).hashes
                count += 1
                if len(words) < least_words:
                    short += 1
                    continue
                length = min(n, len(words))
                self.lengths.add(length)
                parts.append(ngram_hashes(words, length))
            own[name] = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
            self.counts[name] = {"examples": count, "short_examples": short, "ngrams": len(own[name])}
        self.hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *own.values()]))
        if not len(self.hashes):
            raise InputError(
                f"The test sets have no example of {least_words} words or more, so there is nothing to look for: "
                "check decontaminate.files and decontaminate.columns, or lower decontaminate.least_words."
            )
        self.members = {name: np.searchsorted(self.hashes, hashes) for name, hashes in own.items()}
        self._prepare()

    def _prepare(self) -> None:
        slots = min(LARGEST_FILTER, 1 << (FILTER_SLOTS * len(self.hashes) - 1).bit_length())
        self._mask = np.uint64(slots - 1)
        self._filter = np.zeros(slots, bool)
        self._filter[self.hashes & self._mask] = True

    def save(self, folder: Path) -> None:
        """Write them to a folder, for `load`."""
        members: dict[str, Any] = {f"members {name}": each for name, each in self.members.items()}
        np.savez(folder / ARRAYS, hashes=self.hashes, **members)
        write_json(folder / COUNTS, {"lengths": sorted(self.lengths), "counts": self.counts})

    @classmethod
    def load(cls, folder: Path) -> "TestNgrams":
        """What `save` has written."""
        tests = cls.__new__(cls)
        content = read_json(folder / COUNTS)
        tests.lengths, tests.counts = set(content["lengths"]), content["counts"]
        with np.load(folder / ARRAYS) as arrays:
            tests.hashes = arrays["hashes"]
            tests.members = {name: arrays[f"members {name}"] for name in tests.counts}
        tests._prepare()
        return tests

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these hashes are of the tests, and their numbers."""
        places = np.flatnonzero(self._filter[hashes & self._mask])
        numbers = np.searchsorted(self.hashes, hashes[places])
        numbers[numbers == len(self)] = 0
        there = self.hashes[numbers] == hashes[places]
        return places[there], numbers[there]

    def sets_of(self, ngrams: np.ndarray) -> dict[str, np.ndarray]:
        """For each test set whether it has each of these N-grams, given their numbers."""
        return {name: np.isin(ngrams, members) for name, members in self.members.items()}


def find_hits(batch: pa.RecordBatch, tests: TestNgrams) -> pa.RecordBatch:
    """All places of a batch in which an N-gram of the tests stands, as HITS: by row, side and place."""
    texts = document.texts_in_turn(batch)
    sides = len(document.sides(batch))
    found: list[np.ndarray] = []
    for first, count in chunks(texts):
        part = texts.slice(first, count)
        # White space between the documents, so that they have no word in common.
        together = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), part)
        text = pc.call_function("binary_join", [together, pa.scalar("\n")])[0].as_py()
        begins = np.zeros(count, np.int64)
        np.cumsum(pc.call_function("utf8_length", [part]).to_numpy(zero_copy_only=False)[:-1] + 1, out=begins[1:])
        hits = hits_of_text(text, begins, tests)
        hits[:, 0] += first
        found.append(hits)
    hits = np.concatenate([np.empty((0, 4), np.int64), *found])
    hits = hits[np.lexsort((hits[:, 3], hits[:, 2], hits[:, 1], hits[:, 0]))]
    row, side = np.divmod(hits[:, 0], sides)
    return pa.record_batch([row.astype(np.int32), side.astype(np.int8), *hits[:, 1:].T], schema=HITS)


def chunks(texts: pa.Array) -> Iterable[tuple[int, int]]:
    """First and number of consecutive texts that are long enough together for work in arrays, and no longer than memory likes."""
    ends = np.cumsum(document.text_lengths(texts))
    first = 0
    while first < len(texts):
        before = ends[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + CHUNK_CHARACTERS, side="right")))
        yield first, stop - first
        first = stop


def hits_of_text(text: str, begins: np.ndarray, tests: TestNgrams) -> np.ndarray:
    """Hits in documents that stand one after another in a text, beginning at these characters.

    Returns: int64 of shape (hits, 4): document, start and end in its characters, number of the N-gram.
    """
    words = find_words(text)
    found = [np.empty((0, 4), np.int64)]
    for length in sorted(tests.lengths):
        places, ngrams = tests.find(ngram_hashes(words.hashes, length))
        starts, ends = words.starts[places], words.ends[places + length - 1]
        documents = np.searchsorted(begins, starts, side="right") - 1
        inside = documents == np.searchsorted(begins, ends - 1, side="right") - 1
        found.append(np.stack([documents, starts, ends, ngrams], axis=1)[inside])
    hits = np.concatenate(found)
    if len(hits):
        spaces = np.flatnonzero(kinds_of_characters()[code_points(text)] == SPACE)
        spaces = np.concatenate([[-1], spaces, [len(text)]])
        begin = begins[hits[:, 0]]
        hits[:, 1] = spaces[np.searchsorted(spaces, hits[:, 1]) - 1] + 1 - begin
        hits[:, 2] = spaces[np.searchsorted(spaces, hits[:, 2])] - begin
    return hits


def documents_with(hits: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """The different N-grams among the hits of a batch, and in how many of its documents each stands."""
    rows, ngrams = (hits.column(name).to_numpy() for name in ("row", "ngram"))
    order = np.lexsort((rows, ngrams))
    rows, ngrams = rows[order], ngrams[order]
    first = np.r_[True, (np.diff(ngrams) != 0) | (np.diff(rows) != 0)][: len(rows)]
    return np.unique(ngrams[first], return_counts=True)
