"""Repeats inside each text of a batch: of lines and paragraphs, and of runs of words."""

import numpy as np
import pyarrow as pa

from data_prep.filtering.words import Texts, Words, spread, sums
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


def newline_runs(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Where rows of newlines inside each text start and end."""
    newlines = np.flatnonzero(texts.bytes == NEWLINE)
    opening = np.ones(len(newlines), bool)
    opening[1:] = np.diff(newlines) > 1
    at = np.searchsorted(newlines, texts.starts)
    at = at[at < len(newlines)]
    opening[at[np.isin(newlines[at], texts.starts)]] = True
    starts = np.flatnonzero(opening)
    lengths = np.diff(np.append(starts, len(newlines)))
    return newlines[starts], newlines[starts] + lengths


def repeated(texts: Texts, found: Segments) -> tuple[np.ndarray, np.ndarray]:
    """How many segments of each text came before in it, and how many characters those have."""
    again = np.flatnonzero(earlier_in_text(texts, found))
    text = np.searchsorted(found.bounds, again, side="right") - 1
    characters = np.zeros(len(found.counts), np.int64)
    np.add.at(characters, text, texts.characters_of(found.starts[again], found.ends[again]))
    return np.bincount(text, minlength=len(found.counts)), characters


def earlier_in_text(texts: Texts, found: Segments) -> np.ndarray:
    """Which segments are equal to an earlier one of the same text."""
    lengths = found.ends - found.starts
    offsets = np.append(0, np.cumsum(lengths))
    # The segments in a row without what separates them, for Arrow to number their contents.
    covered = np.ones(len(texts.bytes), bool)
    gaps = np.append(0, found.ends), np.append(found.starts, len(texts.bytes))
    covered[spread(gaps[0], gaps[1] - gaps[0])] = False
    content = texts.bytes[covered]
    column = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(content))
    numbers = column.dictionary_encode().indices.to_numpy()
    several = np.flatnonzero(np.bincount(numbers)[numbers] > 1)
    numbers, text = numbers[several], np.searchsorted(found.bounds, several, side="right")
    order = np.lexsort((numbers, text))
    same = (np.diff(numbers[order]) == 0) & (np.diff(text[order]) == 0)
    again = np.zeros(len(lengths), bool)
    again[several[order[1:][same]]] = True
    return again


class Runs:
    """Runs of N consecutive words, compared inside each text by a 64-bit hash.

    To be asked for growing N and for fewer and fewer texts: a run that is there twice has shorter ones that are, so that
    only places of those are compared again.
    """

    def __init__(self, words: Words):
        self.words = words
        self.text = np.repeat(np.arange(len(words.counts)), words.counts)
        self.hashes = words.vocabulary.hashes[words.tokens]
        self.start_anew()

    def start_anew(self) -> None:
        """Compare all places again."""
        self.n = 0
        # Where runs of N start that are there twice, in order, and their hashes; and the groups of equal ones.
        self.starts, self.starts_hashes = np.empty(0, np.int64), np.empty(0, np.uint64)
        self.places, self.begins = self.starts, self.starts

    def groups(self, n: int, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The starts of equal runs of N words beside each other, of groups of two and more, and where each group begins there."""
        if n == self.n:
            return self.places, self.begins
        if n < self.n:
            self.start_anew()
        ends = self.words.bounds[1:]
        if self.n:
            starts, hashes = self.starts, self.starts_hashes
            text = self.text[starts]
            there = np.flatnonzero((starts + n <= ends[text]) & chosen[text])
            member = np.zeros(len(self.text), bool)
            member[starts] = True
            there = there[member[starts[there] + (n - self.n)]]
            starts, hashes = starts[there], hashes[there]
            for offset in range(self.n, n):
                hashes = hashes * FACTOR + self.hashes[starts + offset]
        else:
            # Equal runs of different texts are different.
            seeds = mixed(np.arange(len(ends), dtype=np.uint64) + FACTOR)
            hashes = np.repeat(seeds, self.words.counts)
            for offset in range(n):
                hashes *= FACTOR
                hashes[: max(0, len(hashes) - offset)] += self.hashes[offset:]
            inside = np.repeat(chosen, self.words.counts)
            for offset in range(1, n):
                inside[np.maximum(ends - offset, self.words.bounds[:-1])[self.words.counts > 0]] = False
            starts = np.flatnonzero(inside)
            hashes = hashes[starts]
        order = np.argsort(hashes)
        ordered = hashes[order]
        same = np.zeros(len(order) + 1, bool)
        same[1:-1] = ordered[1:] == ordered[:-1]
        member = same[:-1] | same[1:]
        self.places = starts[order[member]]
        self.begins = np.flatnonzero(~same[:-1][member])
        again = np.zeros(len(starts), bool)
        again[order[member]] = True
        self.n, self.starts, self.starts_hashes = n, starts[again], hashes[again]
        return self.places, self.begins

    def top_characters(self, n: int, chosen: np.ndarray) -> np.ndarray:
        """Characters of the most frequent run of N words of each text, with single spaces, times how often it is there.

        Of several that are equally frequent, the first counts. 0 for a text of fewer words.
        """
        places, begins = self.groups(n, chosen)
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
        places, begins = self.groups(n, chosen)
        total = np.zeros(len(self.words.counts), np.int64)
        if not len(places):
            return total
        first = np.repeat(np.minimum.reduceat(places, begins), np.diff(np.append(begins, len(places))))
        later = np.sort(places[places != first])
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
        places, begins = self.groups(n, chosen)
        total = np.zeros(len(self.words.counts), np.int64)
        group = np.zeros(len(places), np.int64)
        group[begins] = 1
        group = np.cumsum(group)
        wanted = chosen[self.text[places]]
        places, group = places[wanted], group[wanted]
        order = np.argsort(places)
        seen: set[int] = set()
        found: list[int] = []
        after = 0
        for place, run in zip(places[order].tolist(), group[order].tolist(), strict=True):
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
