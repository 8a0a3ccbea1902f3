"""Lines of the texts of a batch, cut where `str.splitlines` cuts, and what they start and end with."""

import numpy as np

from data_prep.filtering.repeats import Segments, segments
from data_prep.filtering.words import Texts

WIDE_BREAKS = ("\x85", "\u2028", "\u2029")


def lines_of(texts: Texts) -> Segments:
    """The lines of each text as `str.splitlines` gives them, without their ends; an empty text has none."""
    # From 10 to 13 and from 28 to 30; what is less goes around.
    marks = np.flatnonzero((texts.bytes - np.uint8(10) < 4) | (texts.bytes - np.uint8(28) < 3))
    content = np.append(texts.bytes, 0)
    # The newline of a carriage return and newline belongs to it, unless a text starts between them.
    pair = (content[marks] == 13) & (content[marks + 1] == 10) & ~np.isin(marks + 1, texts.starts)
    ends = marks + 1 + pair
    second = np.zeros(len(marks), bool)
    second[1:] = pair[:-1]
    starts, ends = marks[~second], ends[~second]
    if texts.wide:
        found = [(texts.places(mark), len(mark.encode())) for mark in WIDE_BREAKS]
        starts, ends = (
            np.concatenate([starts, *(places for places, _ in found)]),
            np.concatenate([ends, *(places + size for places, size in found)]),
        )
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
    found = segments(texts, texts.starts, texts.ends, starts, ends)
    # After a line's end at the end of a text there is no further line.
    text_ends = np.repeat(texts.ends, found.counts)
    last = np.zeros(len(found.starts), bool)
    last[found.bounds[1:] - 1] = True
    return found.where(~(last & (found.starts == found.ends) & (found.ends == text_ends)))


def blank_stripped(texts: Texts, lines: Segments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the lines that are more than white space: the number of their text, and start and end without space around."""
    # All ends of lines are white space, so that a piece lies in one line.
    starts, ends = texts.piece_spans
    begin, end = np.searchsorted(starts, lines.starts), np.searchsorted(starts, lines.ends)
    some = end > begin
    text = np.repeat(np.arange(len(lines.counts)), lines.counts)
    return text[some], starts[begin[some]], ends[end[some] - 1]


def starts_with(texts: Texts, starts: np.ndarray, ends: np.ndarray, marks: tuple[str, ...]) -> np.ndarray:
    """Which of the ranges of bytes start with one of the marks."""
    found = np.zeros(len(starts), bool)
    for mark in marks:
        found |= equal_at(texts, starts, ends, mark.encode())
    return found


def ends_in(texts: Texts, starts: np.ndarray, ends: np.ndarray, marks: tuple[str, ...]) -> np.ndarray:
    """Which of the ranges of bytes end in one of the marks."""
    found = np.zeros(len(starts), bool)
    for mark in marks:
        found |= equal_at(texts, np.maximum(starts, ends - len(mark.encode())), ends, mark.encode())
    return found


def equal_at(texts: Texts, starts: np.ndarray, ends: np.ndarray, wanted: bytes) -> np.ndarray:
    """Which of the ranges of bytes start with these."""
    equal = ends - starts >= len(wanted)
    for at, byte in enumerate(wanted):
        places = np.flatnonzero(equal)
        equal[places] = texts.bytes[starts[places] + at] == byte
    return equal
