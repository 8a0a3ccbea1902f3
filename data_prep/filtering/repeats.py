"""Repeats inside each text of a batch: of lines and paragraphs, and of runs of words."""

import numpy as np
import pyarrow as pa

from data_prep.filtering.words import Texts, Words, sums
from data_prep.ngrams import FACTOR, mixed

NEWLINE = 10


class Segments:
    """The pieces of each text between separators: where they start and end in the bytes, and how many each text has."""

    def __init__(self, starts: np.ndarray, ends: np.ndarray, counts: np.ndarray):
        self.starts, self.ends, self.counts = starts, ends, counts

    @property
    def bounds(self) -> np.ndarray:
        return np.append(0, np.cumsum(self.counts))

    def where(self, chosen: np.ndarray) -> "Segments":
        """Those of the segments that are chosen."""
        return Segments(self.starts[chosen], self.ends[chosen], sums(chosen, self.bounds))


def segments(texts: Texts, first: np.ndarray, last: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Segments:
    """The segments of the ranges first..last of the bytes, one a text, between separators that lie in them, in order."""
    here = np.diff(np.searchsorted(starts, np.append(first, len(texts.bytes) + 1)))
    bounds = np.append(0, np.cumsum(here + 1))
    # Each range has one segment more than separators: they start at the range's start and after each separator.
    begin, finish = np.empty(bounds[-1], np.int64), np.empty(bounds[-1], np.int64)
    opening, closing = np.zeros(bounds[-1], bool), np.zeros(bounds[-1], bool)
    opening[bounds[:-1]] = closing[bounds[1:] - 1] = True
    begin[opening], begin[~opening] = first, ends
    finish[closing], finish[~closing] = last, starts
    return Segments(begin, finish, here + 1)


def newline_runs(texts: Texts, first: np.ndarray, last: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of at least so many newlines start and end, inside the given range of each text."""
    newlines = np.flatnonzero(texts.bytes == NEWLINE)
    text = np.searchsorted(texts.offsets, newlines, side="right") - 1
    inside = (newlines >= first[text]) & (newlines < last[text])
    newlines, text = newlines[inside], text[inside]
    opening = np.ones(len(newlines), bool)
    opening[1:] = (np.diff(newlines) > 1) | (np.diff(text) > 0)
    starts = np.flatnonzero(opening)
    lengths = np.diff(np.append(starts, len(newlines)))
    chosen = lengths >= least
    return newlines[starts[chosen]], newlines[starts[chosen]] + lengths[chosen]


def repeated(texts: Texts, found: Segments) -> tuple[np.ndarray, np.ndarray]:
    """How many segments of each text came before in it, and how many characters those have."""
    again = earlier_in_text(texts, found)
    characters = texts.characters_before[found.ends] - texts.characters_before[found.starts]
    return sums(again, found.bounds), sums(np.where(again, characters, 0), found.bounds)


def earlier_in_text(texts: Texts, found: Segments) -> np.ndarray:
    """Which segments are equal to an earlier one of the same text."""
    lengths = found.ends - found.starts
    offsets = np.append(0, np.cumsum(lengths))
    # The segments in a row without what separates them, for Arrow to number their contents.
    covered = np.zeros(len(texts.bytes) + 1, np.int8)
    np.add.at(covered, found.starts, 1)
    np.subtract.at(covered, found.ends, 1)
    content = texts.bytes[np.cumsum(covered[:-1], dtype=np.int8) > 0]
    column = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(content))
    numbers = column.dictionary_encode().indices.to_numpy().astype(np.int64)
    text = np.repeat(np.arange(len(found.counts)), found.counts)
    order = np.lexsort((numbers, text))
    same = (np.diff(numbers[order]) == 0) & (np.diff(text[order]) == 0)
    again = np.zeros(len(numbers), bool)
    again[order[1:][same]] = True
    return again


class Runs:
    """Runs of N consecutive words, compared inside each text by a 64-bit hash."""

    def __init__(self, words: Words):
        self.words = words
        self.text = np.repeat(np.arange(len(words.counts)), words.counts)
        self.hashes = mixed(words.tokens.astype(np.uint64))
        # Equal runs of different texts are different.
        self.seeds = mixed(np.arange(len(words.counts), dtype=np.uint64) + FACTOR)

    def of(self, n: int, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the runs of N words of the chosen texts start, in order, and their hashes."""
        last = self.words.bounds[1:] - n
        starts = np.arange(len(self.text))
        starts = starts[(starts <= last[self.text]) & chosen[self.text]]
        total = np.zeros(len(starts), np.uint64)
        for offset in range(n):
            total *= FACTOR
            total += self.hashes[starts + offset]
        return starts, total + self.seeds[self.text[starts]]

    def groups(self, n: int, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The starts of equal runs beside each other, and where a new group begins among them, for groups of two and more;
        with them the starts of all runs."""
        starts, hashes = self.of(n, chosen)
        order = np.argsort(hashes)
        ordered = hashes[order]
        same = np.zeros(len(order) + 1, bool)
        np.equal(ordered[1:], ordered[:-1], out=same[1:-1]) if len(order) else None
        member = same[:-1] | same[1:]
        begins = np.flatnonzero(~same[:-1][member])
        return starts[order[member]], begins, starts

    def top_characters(self, n: int, chosen: np.ndarray) -> np.ndarray:
        """Characters of the most frequent run of N words of each text, with single spaces, times how often it is there.

        Of several that are equally frequent, the first counts. 0 for a text of fewer words.
        """
        places, begins, _ = self.groups(n, chosen)
        bounds = self.words.bounds
        some = chosen & (self.words.counts >= n)
        far = np.int64(2**40)
        best = np.where(some, far + (far - 1 - bounds[:-1]), 0)
        if len(places):
            first = np.minimum.reduceat(places, begins)
            counts = np.diff(np.append(begins, len(places)))
            np.maximum.at(best, self.text[first], counts * far + (far - 1 - first))
        counts, first = best // far, far - 1 - best % far
        first = np.where(some, first, 0)
        before = self.words.characters_before
        lengths = before[np.where(some, first + n, 0)] - before[first] + n - 1
        return np.where(some, counts * lengths, 0)

    def covered_characters(self, n: int, chosen: np.ndarray) -> np.ndarray:
        """Characters of all words in runs of N that came before in their text: no less than `repeated_characters`."""
        places, begins, _ = self.groups(n, chosen)
        total = np.zeros(len(self.words.counts), np.int64)
        if not len(places):
            return total
        first = np.minimum.reduceat(places, begins)
        later = np.setdiff1d(places, first, assume_unique=True)
        later.sort()
        # Each run adds what the one before it in the text did not cover.
        starts = later.copy()
        starts[1:] = np.maximum(starts[1:], later[:-1] + n)
        before = self.words.characters_before
        np.add.at(total, self.text[later], before[later + n] - before[starts])
        return total

    def repeated_characters(self, n: int, chosen: np.ndarray) -> np.ndarray:
        """Characters of the runs of N words of each text that came before in it, each looked for after the end of the last.

        Only runs that are there twice are walked over; 0 for texts that are not chosen.
        """
        places, begins, _ = self.groups(n, chosen)
        total = np.zeros(len(self.words.counts), np.int64)
        opening = np.zeros(len(places), np.int64)
        opening[begins] = 1
        order = np.argsort(places)
        group = np.cumsum(opening)[order].tolist()
        seen: set[int] = set()
        found: list[int] = []
        after = 0
        for place, run in zip(places[order].tolist(), group, strict=True):
            if place < after:
                continue
            if run in seen:
                found.append(place)
                after = place + n
            else:
                seen.add(run)
        at = np.array(found, np.int64)
        before = self.words.characters_before
        np.add.at(total, self.text[at], before[at + n] - before[at])
        return total
