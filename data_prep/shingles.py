"""What near-duplicates are compared by: the set of a document's N-grams, as hashes, for a batch of documents at once.

Words and characters are those of `data_prep.ngrams`: lower case, without white space and punctuation.
"""

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.document import text_buffer
from data_prep.ngrams import (
    LETTER,
    code_points,
    find_words,
    kinds_of_characters,
    lowered,
    ngram_hashes,
    numbers_of_characters,
)

Unit = Literal["words", "characters"]

PIECE_CHARACTERS = 2**20
SPACE = re.compile(r"\s")


def shingles(texts: pa.Array, n: int, unit: Unit = "words") -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the N-grams of each text, as they come, uint64 in one piece, and how many each has, int64.

    A text with fewer than `n` words (or characters) has one: all its words. A text without words has none.
    """
    words, counts = {"words": word_hashes, "characters": character_hashes}[unit](texts)
    firsts = np.cumsum(counts) - counts
    hashes = words.copy()
    grams = ngram_hashes(words, n)
    hashes[: len(grams)] = grams
    for length in range(1, n):
        if len(short := firsts[counts == length]):
            hashes[short] = ngram_hashes(words, length)[short]
    places = np.arange(len(words)) - np.repeat(firsts, counts)
    lasts = np.maximum(counts - n, 0)
    inside = places <= np.repeat(lasts, counts)
    return hashes[inside], np.where(counts > 0, lasts + 1, 0)


def shingle_sets(texts: pa.Array, n: int, unit: Unit = "words") -> tuple[np.ndarray, np.ndarray]:
    """As `shingles`, each document's in ascending order and without repeats."""
    hashes, lengths = shingles(texts, n, unit)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((hashes, owners))
    hashes = hashes[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], np.bincount(owners[new], minlength=len(lengths)).astype(np.int64)


def word_hashes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the words of each text, uint64 in one piece, and how many each has, int64."""
    text, ends = joined(texts)
    found = [(begin, find_words(text[begin:end])) for begin, end in pieces(text)]
    if not found:
        return np.empty(0, np.uint64), np.zeros(len(texts), np.int64)
    starts = np.concatenate([begin + words.starts for begin, words in found])
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)
    return np.concatenate([words.hashes for _, words in found]), counts


def character_hashes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """As `word_hashes`, each character being a word."""
    codes, counts = letters(texts)
    return numbers_of_characters()[codes], counts


def letters(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The characters of each text in lower case without white space and punctuation, uint32, and how many each has, int64."""
    text, ends = joined(texts)
    codes = code_points(lowered(text))
    kept = kinds_of_characters()[codes] == LETTER
    counts = np.add.reduceat(kept, np.r_[0, ends[:-1]], dtype=np.int64) if len(ends) else ends
    return codes[kept], counts


def joined(texts: pa.Array) -> tuple[str, np.ndarray]:
    """The texts as one, a line end after each so that no word crosses, and where each one ends, in characters."""
    empty, separator = (pa.scalar(value, texts.type) for value in ("", "\n"))
    lines = pc.call_function("binary_join_element_wise", [texts, empty, separator])
    lengths = pc.call_function("utf8_length", [lines]).to_numpy()
    return str(text_buffer(lines), "utf-8"), np.cumsum(lengths, dtype=np.int64)


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """Cut at white space, so that no word is cut and the arrays for one piece stay small."""
    begin = 0
    while begin < len(text):
        space = SPACE.search(text, min(begin + PIECE_CHARACTERS, len(text)))
        end = space.end() if space else len(text)
        yield begin, end
        begin = end
