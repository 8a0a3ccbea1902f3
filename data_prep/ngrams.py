"""Words and N-grams of a text as Brown et al. 2020, appendix C, count them, and 64-bit hashes by which whole corpora are compared.

A word is what stands between white space, in lower case, without punctuation; what is punctuation alone is none. Words and their
hashes are found for a long text at once, in arrays, since a corpus has too many for a loop.
"""

import string
import sys
import unicodedata
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

import numpy as np

SPACE, PUNCTUATION, LETTER = 0, 1, 2  # A letter is any character that words are made of.
FACTOR = np.uint64(0xD1342543DE82EF95)
"""Odd, so that multiplying by it loses nothing modulo 2^64."""


class Words(NamedTuple):
    """The words of a text, in their order."""

    starts: np.ndarray
    """The first character of each that is no punctuation, int64."""
    ends: np.ndarray
    """The character after its last that is no punctuation, int64."""
    hashes: np.ndarray
    """uint64; those of different words are equal with a probability of 2^-64."""
    open: bool
    """Whether the text ends without white space after the last word, so that text after it could belong to that word."""


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: `"Don't," he said.` has `dont`, `he` and `said`."""
    return lowered(text).translate(dropped_characters()).split()


def find_words(text: str) -> Words:
    """Where the words of a text stand, and their hashes."""
    codes = code_points(lowered(text))
    kinds = kinds_of_characters()[codes]
    letters = np.flatnonzero(kinds == LETTER)
    if not len(letters):
        return Words(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, np.uint64)), open=False)
    # Between letters of one word there may be punctuation, but no space.
    apart = np.flatnonzero(np.diff(letters) > 1)
    spaces = np.cumsum(kinds == SPACE, dtype=np.int32)
    apart = apart[spaces[letters[apart]] != spaces[letters[apart + 1]]]
    firsts = np.concatenate([[0], apart + 1])
    lengths = np.diff(firsts, append=len(letters))
    # A sum in which each character has a random number, times another for its place in the word.
    places = np.arange(len(letters), dtype=np.int32) - np.repeat(firsts.astype(np.int32), lengths)
    terms = numbers_of_characters()[codes[letters]]
    terms *= powers(int(lengths.max()))[places]
    ends = letters[firsts + lengths - 1] + 1
    return Words(letters[firsts], ends, np.add.reduceat(terms, firsts), open=not (kinds[ends[-1] :] == SPACE).any())


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """The hash of each N consecutive words, given the words': uint64 of shape (max(0, len(words) - n + 1),).

    A sum of products with powers of an odd number, so that the order of words counts. Among M different N-grams a given other one
    has an equal hash with a probability of about M x 2^-64: 5e-10 for ten thousand million.
    """
    count = max(0, len(words) - n + 1)
    total = words[:count].copy()
    for offset in range(1, n if count else 0):
        total *= FACTOR
        total += words[offset : offset + count]
    return mixed(total)


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014) of uint64: one to one, and every input bit moves every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def lowered(text: str) -> str:
    """A text in lower case, each character where it was: İ, the one that would become two, as i."""
    return text.replace("İ", "i").lower()


def code_points(text: str) -> np.ndarray:
    """The characters of a text as uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


IDEOGRAPHS = 0x20000
"""From here on Unicode has ideographs, tags and private characters: no white space and no punctuation. Asking for each takes a second."""


@lru_cache(maxsize=1)
def kinds_of_characters() -> np.ndarray:
    """The kind of every code point, uint8.

    SPACE as `str.split` has it; PUNCTUATION of Unicode, and all of ASCII that is neither letter nor digit; or LETTER.
    """
    kinds = np.full(sys.maxunicode + 1, LETTER, np.uint8)
    characters = "".join(map(chr, range(IDEOGRAPHS)))
    # One pass each in C: a call of ours for each character would take a tenth of a second, in every process.
    categories = "".join(map(itemgetter(0), map(unicodedata.category, characters)))
    kinds[:IDEOGRAPHS][code_points(categories) == ord("P")] = PUNCTUATION
    kinds[code_points(string.punctuation)] = PUNCTUATION
    kinds[:IDEOGRAPHS][np.fromiter(map(str.isspace, characters), bool, IDEOGRAPHS)] = SPACE
    return kinds


@lru_cache(maxsize=1)
def dropped_characters() -> dict[int, None]:
    """All punctuation, for `str.translate`."""
    return dict.fromkeys(np.flatnonzero(kinds_of_characters() == PUNCTUATION).tolist())


@lru_cache(maxsize=1)
def numbers_of_characters() -> np.ndarray:
    """A random number for every code point, uint64, the same on every machine."""
    return mixed(np.arange(sys.maxunicode + 1, dtype=np.uint64))


def powers(count: int) -> np.ndarray:
    """FACTOR to the power of 0, 1, ... modulo 2^64, `count` of them, as uint64."""
    return np.cumprod(np.r_[np.uint64(1), np.full(count - 1, FACTOR)], dtype=np.uint64)
