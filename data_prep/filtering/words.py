"""Whole batches of text as arrays: which bytes are white space, where words stand, and what is known of each word.

Text is cut into pieces at white space, all at once. A vocabulary remembers which words each piece has, so that only a
piece that was not met before costs a call of Python.
"""

import unicodedata
from collections import defaultdict
from functools import cached_property
from itertools import count, pairwise

import numpy as np
import pyarrow as pa
import regex

from data_prep.document import text_buffer, text_offsets
from data_prep.filtering.ascii_words import cut_pieces
from data_prep.filtering.english import split_piece
from data_prep.ngrams import mixed

PIECES = 2**19
"""A vocabulary starts anew when it remembers more pieces than this, or more bytes of them than the next."""
PIECE_BYTES = 2**25
CUT_BYTES = 2**20
"""New pieces are cut about so many bytes at a time."""
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
        return len(self.bytes) > 0 and bool(self.bytes.max() >= 0x80)

    @cached_property
    def spaces(self) -> np.ndarray:
        """Which bytes are of a character that `str.isspace` holds for."""
        # Comparisons are faster than a table; from 9 to 13 and from 28 to 31, since what is less goes around.
        spaces = self.bytes == 32
        spaces |= self.bytes - np.uint8(9) < 5
        spaces |= self.bytes - np.uint8(28) < 4
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
    def continuations(self) -> np.ndarray:
        """The bytes that do not start a character."""
        return np.flatnonzero(self.bytes.view(np.int8) < -64) if self.wide else np.empty(0, np.int64)

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters of each text."""
        return np.diff(self.offsets) - self.counted(self.continuations)

    def characters_of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Characters from each start to the end that belongs to it."""
        marks = self.continuations
        return ends - starts - (np.searchsorted(marks, ends) - np.searchsorted(marks, starts) if len(marks) else 0)

    @cached_property
    def solid(self) -> np.ndarray:
        """The bytes that are no white space."""
        return np.flatnonzero(~self.spaces)

    @cached_property
    def piece_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each piece of text between white space starts and ends, in a row for all texts."""
        solid = ~self.spaces
        opening, closing = solid.copy(), solid.copy()
        opening[1:] &= self.spaces[:-1]
        closing[:-1] &= self.spaces[1:]
        # A piece does not go on from one text to the next.
        edges = self.offsets[(self.offsets > 0) & (self.offsets < len(solid))]
        opening[edges], closing[edges - 1] = solid[edges], solid[edges - 1]
        return np.flatnonzero(opening), np.flatnonzero(closing) + 1

    @cached_property
    def pieces(self) -> tuple[pa.Array, np.ndarray]:
        """What stands between white space, in a row for all texts, and how many pieces come before each text's end."""
        starts, ends = self.piece_spans
        offsets = np.zeros(len(starts) + 1, np.int32)
        np.cumsum(ends - starts, out=offsets[1:])
        content = pa.py_buffer(self.bytes[~self.spaces])
        pieces = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), content)
        return pieces, np.searchsorted(starts, self.offsets)

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


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as it counts, all in a row."""
    before = np.append(0, np.cumsum(counts))
    places = np.repeat(starts - before[:-1], counts)
    places += np.arange(before[-1])
    return places


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
        # What is looked up for the first time gets the next number.
        self.piece_numbers: defaultdict[str, int] = defaultdict(count().__next__)
        self.word_numbers: defaultdict[str, int] = defaultdict(count().__next__)
        self.piece_bytes = 0
        self._piece_starts, self._piece_counts, self._piece_words = Grown(np.int64), Grown(np.int64), Grown(np.int32)
        self._lengths, self._properties, self._hashes = Grown(np.int64), Grown(np.uint8), Grown(np.uint64)

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each word."""
        return self._lengths.values

    @property
    def hashes(self) -> np.ndarray:
        """A uint64 of each word, different for different ones."""
        return self._hashes.values

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
        here = self.numbers_of_pieces(encoded.dictionary)[encoded.indices.to_numpy()]
        counts = self._piece_counts.values[here]
        before = np.append(0, np.cumsum(counts))
        places = spread(self._piece_starts.values[here], counts)
        return Words(self, self._piece_words.values[places], before[bounds])

    def numbers_of_pieces(self, column: pa.StringArray) -> np.ndarray:
        """The number of each of some different pieces; those that are new are cut now."""
        before = len(self.piece_numbers)
        numbers = np.fromiter(map(self.piece_numbers.__getitem__, column.to_pylist()), np.int64, len(column))
        new = np.flatnonzero(numbers >= before)
        if len(new):
            unknown = Texts(column.take(pa.array(new)))
            bounds = np.searchsorted(unknown.offsets, np.arange(0, len(unknown.bytes), CUT_BYTES))
            for first, last in pairwise([*np.unique(bounds).tolist(), len(new)]):
                self.cut(Texts(unknown.column.slice(first, last - first)))
            self.piece_bytes += len(unknown.bytes)
        return numbers

    def cut(self, pieces: Texts) -> None:
        """Remember the words of these pieces, which are the next ones."""
        openings, known = cut_pieces(pieces.bytes, pieces.offsets)
        other = np.flatnonzero(~known)
        openings[spread(pieces.starts[other], (pieces.ends - pieces.starts)[other])] = False
        begins = []
        for start, piece in zip(
            pieces.starts[other].tolist(), pieces.column.take(pa.array(other)).to_pylist(), strict=True
        ):
            for word in split_piece(piece):
                begins.append(start)
                start += len(word) if word.isascii() else len(word.encode())
        openings[begins] = True
        starts = np.flatnonzero(openings)
        offsets = np.append(starts, len(pieces.bytes)).astype(np.int32)
        words = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(pieces.bytes))
        encoded = words.dictionary_encode()
        bounds = np.searchsorted(starts, pieces.offsets)
        self._piece_starts.extend(len(self._piece_words) + bounds[:-1])
        self._piece_counts.extend(np.diff(bounds))
        self._piece_words.extend(self.numbers_of_words(encoded.dictionary)[encoded.indices.to_numpy()])

    def numbers_of_words(self, column: pa.StringArray) -> np.ndarray:
        """The number of each of some different words."""
        before = len(self.word_numbers)
        numbers = np.fromiter(map(self.word_numbers.__getitem__, column.to_pylist()), np.int64, len(column))
        new = np.flatnonzero(numbers >= before)
        if len(new):
            unknown = Texts(column.take(pa.array(new)))
            self._lengths.extend(unknown.characters)
            self._properties.extend(properties_of(unknown))
            self._hashes.extend(mixed(numbers[new].astype(np.uint64)))
        return numbers


def properties_of(words: Texts) -> np.ndarray:
    """What a vocabulary tells of each word, as bits in the order of its arrays: uint8."""
    found = np.bitwise_or.reduceat(PROPERTIES[words.bytes], words.starts)
    single = words.ends - words.starts == 1
    # Of one byte that ends sentences there is only what is said of all bytes.
    found = np.where(single, found, found & ~np.uint8(8)) ^ 4
    wide = np.flatnonzero(np.bitwise_or.reduceat(words.bytes, words.starts) >= 0x80)
    found[wide] = [properties(word) for word in words.column.take(pa.array(wide)).to_pylist()]
    return found


def properties(word: str) -> int:
    """What a vocabulary tells of a word, as bits in the order of its arrays."""
    if word.isalpha():
        return 3
    worded = not all(character in PUNCTUATION or character in SENTENCE_ENDS for character in word)
    marks = all(unicodedata.category(character).startswith("P") for character in word)
    letters = any(character.isalpha() for character in word)
    return worded | letters << 1 | marks << 2 | (len(word) == 1 and word in SENTENCE_ENDS) << 3


PROPERTIES = np.array([properties(chr(code)) ^ 4 for code in range(128)] + [0] * 128, np.uint8)
"""The properties of ASCII's characters as words, with the third turned about: a word has each bit that one character has."""


class Grown:
    """An array that grows at its end."""

    def __init__(self, dtype: type):
        self._room, self._length = np.empty(1024, dtype), 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: np.ndarray) -> None:
        length = self._length + len(values)
        if length > len(self._room):
            self._room = np.concatenate([self.values, np.empty(length, self._room.dtype)])
        self._room[self._length : length] = values
        self._length = length

    @property
    def values(self) -> np.ndarray:
        return self._room[: self._length]
