"""Whole batches of text as arrays: which bytes are white space, where words stand, and what is known of each word.

Text is cut into pieces at white space, all at once. A vocabulary remembers which words each piece has, so that only a
piece that was not met before costs a call of Python.
"""

import unicodedata
from functools import cached_property

import numpy as np
import pyarrow as pa
import regex

from data_prep.document import text_buffer, text_offsets
from data_prep.filtering.english import split_piece

PIECES = 2**19
"""A vocabulary starts anew when it remembers more pieces than this, or more bytes of them than the next."""
PIECE_BYTES = 2**25
ASCII_SPACES = np.zeros(256, bool)
ASCII_SPACES[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
WIDE_SPACES = [
    chr(code).encode() for code in (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
]
PUNCTUATION = frozenset(
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
    + "".join(map(chr, (*range(32), *range(127, 160))))
)
"""Signs that make no word, as CCNet lists them (Wenzek et al. 2020)."""
SENTENCE_ENDS = frozenset(
    regex.findall(r"[\p{Sentence_Terminal}៖៙៚]", "".join(map(chr, (*range(0xD800), *range(0xE000, 0x20000)))))
)
"""Signs that end a sentence, of all scripts."""


class Texts:
    """A string column as bytes, with arrays about each of them made when they are first asked for."""

    def __init__(self, column: pa.Array):
        self.column = column
        self.bytes = np.frombuffer(text_buffer(column), np.uint8)
        offsets = text_offsets(column)
        self.offsets = (offsets - offsets[0]).astype(np.int64)
        """Where each text starts, and where the last one ends."""

    @property
    def starts(self) -> np.ndarray:
        return self.offsets[:-1]

    @property
    def ends(self) -> np.ndarray:
        return self.offsets[1:]

    @cached_property
    def wide(self) -> bool:
        """Whether there is any character outside ASCII."""
        return bool((self.bytes >= 0x80).any())

    @cached_property
    def spaces(self) -> np.ndarray:
        """Which bytes are of a character that `str.isspace` holds for."""
        spaces = ASCII_SPACES[self.bytes]
        if self.wide:
            content = self.bytes
            for first in {space[0] for space in WIDE_SPACES}:
                places = np.flatnonzero(content == first)
                for space in (space for space in WIDE_SPACES if space[0] == first):
                    inside = places[places + len(space) <= len(content)]
                    for at, byte in enumerate(space[1:], 1):
                        inside = inside[content[inside + at] == byte]
                    for at in range(len(space)):
                        spaces[inside + at] = True
        return spaces

    @cached_property
    def characters_before(self) -> np.ndarray:
        """How many characters start before each byte, and after the last one: int64 of shape (bytes + 1,)."""
        if not self.wide:
            return np.arange(len(self.bytes) + 1)
        before = np.zeros(len(self.bytes) + 1, np.int64)
        np.cumsum((self.bytes & 0xC0) != 0x80, out=before[1:])
        return before

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters of each text."""
        return np.diff(self.characters_before[self.offsets])

    @cached_property
    def solid(self) -> np.ndarray:
        """The bytes that are no white space."""
        return np.flatnonzero(~self.spaces)

    @cached_property
    def pieces(self) -> tuple[pa.Array, np.ndarray]:
        """What stands between white space, in a row for all texts, and how many pieces come before each text's end."""
        solid = self.solid
        first = np.ones(len(solid), bool)
        np.not_equal(solid[1:] - solid[:-1], 1, out=first[1:])
        bounds = np.searchsorted(solid, self.offsets)
        first[bounds[bounds < len(solid)]] = True
        starts = np.flatnonzero(first)
        offsets = np.append(starts, len(solid)).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.bytes[solid])]
        return pa.StringArray.from_buffers(len(starts), buffers[1], buffers[2]), np.searchsorted(starts, bounds)

    def counted(self, marks: np.ndarray) -> np.ndarray:
        """How many of these places, in order, are in each text."""
        return np.diff(np.searchsorted(marks, self.offsets))

    def places(self, text: str) -> np.ndarray:
        """Where in the bytes this text of few characters starts, overlapping itself or not."""
        wanted = text.encode()
        places = np.flatnonzero(self.bytes == wanted[0])
        places = places[places + len(wanted) <= len(self.bytes)]
        for at, byte in enumerate(wanted[1:], 1):
            places = places[self.bytes[places + at] == byte]
        if len(wanted) > 1:
            # Not across the end of a text.
            ends = self.offsets[np.searchsorted(self.offsets, places, side="right")]
            places = places[places + len(wanted) <= ends]
        return places


class Words:
    """The words of a batch of texts, as numbers in a vocabulary."""

    def __init__(self, vocabulary: "Vocabulary", tokens: np.ndarray, bounds: np.ndarray):
        self.vocabulary = vocabulary
        self.tokens = tokens
        """int32, all texts in a row."""
        self.bounds = bounds
        """How many words come before each text, and before the end: int64."""

    @property
    def counts(self) -> np.ndarray:
        """Words of each text."""
        return np.diff(self.bounds)

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum for each text of what each word has in the vocabulary."""
        return sums(values[self.tokens], self.bounds)

    @cached_property
    def characters_before(self) -> np.ndarray:
        """How many characters the words before each one have, and all of them: int64 of shape (words + 1,)."""
        before = np.zeros(len(self.tokens) + 1, np.int64)
        np.cumsum(self.vocabulary.lengths[self.tokens], out=before[1:])
        return before


def sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The sum of the values between each bound and the next, as int64."""
    before = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=before[1:])
    return np.diff(before[bounds])


class Vocabulary:
    """Which words each piece of text has, and the properties of each word, for all that was met so far."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew, so that memory stays bounded. Nothing that is computed depends on it."""
        self.piece_numbers: dict[str, int] = {}
        self.word_numbers: dict[str, int] = {}
        self.piece_bytes = 0
        self._piece_starts, self._piece_counts, self._piece_words = Grown(np.int64), Grown(np.int64), Grown(np.int32)
        self._lengths, self._properties = Grown(np.int64), Grown(np.uint8)

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each word."""
        return self._lengths.values

    @property
    def worded(self) -> np.ndarray:
        """Which words are more than punctuation."""
        return self._properties.values & 1 != 0

    @property
    def alphabetic(self) -> np.ndarray:
        """Which words have a letter."""
        return self._properties.values & 2 != 0

    @property
    def marks(self) -> np.ndarray:
        """Which words are punctuation by Unicode, so that no sentence starts with them."""
        return self._properties.values & 4 != 0

    @property
    def enders(self) -> np.ndarray:
        """Which words are one sign that ends a sentence."""
        return self._properties.values & 8 != 0

    def words(self, texts: Texts) -> Words:
        """Cut texts into words."""
        if len(self.piece_numbers) > PIECES or self.piece_bytes > PIECE_BYTES:
            self.forget()
        pieces, bounds = texts.pieces
        encoded = pieces.dictionary_encode()
        numbers = np.fromiter(map(self.piece_number, encoded.dictionary.to_pylist()), np.int64, len(encoded.dictionary))
        here = numbers[encoded.indices.to_numpy()]
        counts = self._piece_counts.values[here]
        before = np.zeros(len(here) + 1, np.int64)
        np.cumsum(counts, out=before[1:])
        places = np.repeat(self._piece_starts.values[here] - before[:-1], counts)
        places += np.arange(before[-1])
        return Words(self, self._piece_words.values[places], before[bounds])

    def piece_number(self, piece: str) -> int:
        number = self.piece_numbers.get(piece)
        if number is None:
            number = self.piece_numbers[piece] = len(self.piece_numbers)
            self.piece_bytes += len(piece)
            words = split_piece(piece)
            self._piece_starts.add(len(self._piece_words))
            self._piece_counts.add(len(words))
            for word in words:
                self._piece_words.add(self.word_number(word))
        return number

    def word_number(self, word: str) -> int:
        number = self.word_numbers.get(word)
        if number is None:
            number = self.word_numbers[word] = len(self.word_numbers)
            self._lengths.add(len(word))
            self._properties.add(properties(word))
        return number


def properties(word: str) -> int:
    """What a vocabulary tells of a word, as bits in the order of its arrays."""
    if word.isalpha():
        return 3
    worded = not all(character in PUNCTUATION or character in SENTENCE_ENDS for character in word)
    marks = all(unicodedata.category(character).startswith("P") for character in word)
    letters = any(character.isalpha() for character in word)
    return worded | letters << 1 | marks << 2 | (len(word) == 1 and word in SENTENCE_ENDS) << 3


class Grown:
    """An array that grows at its end."""

    def __init__(self, dtype: type):
        self._values = np.empty(0, dtype)
        self._pending: list[int] = []

    def __len__(self) -> int:
        return len(self._values) + len(self._pending)

    def add(self, value: int) -> None:
        self._pending.append(value)

    @property
    def values(self) -> np.ndarray:
        if self._pending:
            self._values = np.concatenate([self._values, np.array(self._pending, self._values.dtype)])
            self._pending.clear()
        return self._values
