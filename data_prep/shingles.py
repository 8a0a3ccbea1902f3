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
    hashes = hashes[order_inside(hashes, owners, len(lengths))]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], np.bincount(owners[new], minlength=len(lengths)).astype(np.int64)


def order_inside(hashes: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """The places of hashes in ascending order inside each owner; the `count` owners ascend already."""
    # The owner in the upper bits and the hash in the others: one number sorts many times faster than two columns.
    bits = np.uint64(max(count - 1, 0).bit_length())
    keys = hashes if bits == 0 else owners.astype(np.uint64) << (np.uint64(64) - bits) | hashes >> bits
    order = np.argsort(keys)
    found = hashes[order]
    if ((found[1:] < found[:-1]) & (owners[1:] == owners[:-1])).any():  # They differ in bits that were cut off.
        return np.lexsort((hashes, owners))
    return order


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
