"""The text that a run has trained on, as N-grams with the step at which each was read first.

The shards are read once from left to right, a stretch at a time; at which step a token was read the order of samples says, in
every order that there is. An N-gram counts as read when all tokens that its words have a part in were, be it in several windows; it
never goes on from one document to the next. Source and target of a pair are one document, since they are read together.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data_prep.ngrams import code_points, find_words, ngram_hashes
from data_prep.shards import TokenReader
from data_prep.tokenizer import Tokenizer
from pipeline.data import TokenDataModule
from pipeline.evaluation.ngram_table import Grams
from pipeline.spikes import StepRanges

NEVER = np.iinfo(np.int32).max
"""The step of what was not read."""

STRETCH = 1 << 18
"""Tokens that are looked at together: about a megabyte of text, of which the arrays take about 60 bytes a character."""

LONGEST_TAIL = 1 << 18
"""Tokens that may wait for the words after them. A word of a megabyte is none: what follows it begins anew."""

PART_SHIFT = 48
"""A place is a number: the part of the corpus times 2^48, and the token there."""


class ReadWindows:
    """When tokens of one part were read first, in windows and streams."""

    def __init__(self, data: TokenDataModule, part: int, steps: int, left_out: StepRanges):
        self.data, self.part, self.steps, self.left_out = data, part, steps, left_out

    def first_steps(self, start: int, stop: int) -> np.ndarray:
        """The step at which each token [start, stop) was read, or predicted, first; int32."""
        first = np.full(stop - start, NEVER, np.int32)
        all_samples = self.data.position_at(self.steps)
        below = min(self.data.samples.epoch, all_samples)
        # Mostly an epoch has read all there is, and the many after it need not be looked at.
        self.note(first, start, start, stop, below)
        while below < all_samples and len(unread := np.flatnonzero(first == NEVER)):
            below = min(2 * below, all_samples)
            self.note(first, start, start + int(unread[0]), start + int(unread[-1]) + 1, below)
        return first

    def note(self, first: np.ndarray, origin: int, start: int, stop: int, below: int) -> None:
        """Write the steps of the samples below a position that read any of [start, stop) to the tokens from `origin` on."""
        samples = self.data.samples
        positions = samples.positions(start, stop, below=below, part=self.part)
        for position, (_, begin, length) in zip(positions, samples.spans(np.array(positions, np.int64)), strict=True):
            step = self.data.batches.step_of(position) + 1
            if step > self.data.order_since and step not in self.left_out:
                tokens = first[max(0, begin - origin) : max(0, begin + length - origin)]
                np.minimum(tokens, step, out=tokens)


class ReadPairs:
    """When tokens of pairs were read first: both sides at once."""

    def __init__(self, data: TokenDataModule, steps: int, left_out: StepRanges):
        self.data, self.reader, self.steps, self.left_out = data, data.parts[0], steps, left_out

    def first_steps(self, start: int, stop: int) -> np.ndarray:
        """As of `ReadWindows`."""
        pairs = self.reader.documents_of(start, stop - start)
        begin = self.reader.place(pairs.start).start
        of_tokens = np.repeat(self.of_pairs[pairs.start : pairs.stop], self.lengths[pairs.start : pairs.stop])
        return of_tokens[start - begin : stop - begin]

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.reader.pair_lengths().sum(axis=1)

    @cached_property
    def of_pairs(self) -> np.ndarray:
        """The step that reads each pair first, four bytes a pair; all at once, since batches are made from pools of them."""
        first = np.full(self.reader.pairs, NEVER, np.int32)
        unread = self.data.samples.epoch
        for step in range(self.data.order_since + 1, self.steps + 1):
            if step in self.left_out:
                continue
            positions = np.arange(self.data.position_at(step - 1), self.data.position_at(step))
            pairs = np.unique([pair for _, pair, _ in self.data.samples.spans(positions)])
            new = pairs[first[pairs] == NEVER]
            first[new] = step
            unread -= len(new)
            if not unread:
                break
        return first


class TrainedText:
    """What a run read in its first steps.

    Args:
        data: laid out as the run was when it took those steps.
        steps: how many.
        left_out: those of them that changed nothing.
    """

    def __init__(self, data: TokenDataModule, tokenizer: Tokenizer, steps: int, left_out: StepRanges):
        self.data, self.tokenizer, self.steps = data, tokenizer, steps
        self.reads: list[ReadWindows | ReadPairs] = [
            ReadPairs(data, steps, left_out)
            if data.order == "pairs"
            else ReadWindows(data, part, steps, left_out)
            for part in range(len(data.parts))
        ]  # fmt: skip

    @cached_property
    def spelling(self) -> "Spelling":
        return Spelling(self.tokenizer)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.data.parts))

    def ngrams(self, n: int, after: int = 0, on_progress: Callable[[int], None] | None = None) -> Iterator[Grams]:
        """Every N-gram, as often as it stands there, that was complete after `steps` steps and not yet after `after`.

        Args:
            on_progress: is told of tokens that have been looked at.
        """
        for part, (reader, reads) in enumerate(zip(self.data.parts, self.reads, strict=True)):
            tail = Tail()
            for start in range(0, len(reader), STRETCH):
                stop = min(start + STRETCH, len(reader))
                tokens, first = reader.read(start, stop - start), reads.first_steps(start, stop)
                if min(first.min(), tail.first.min(initial=NEVER)) == NEVER:
                    tail = tail.past(tokens, first, stop, self.spelling)
                else:
                    stretch = tail.before(tokens, first, start)
                    grams, tail = stretch.ngrams(n, self.spelling, reader, last=stop == len(reader))
                    chosen = (grams.steps > after) & (grams.steps <= self.steps)
                    places = grams.places[chosen] | part << PART_SHIFT
                    yield Grams(grams.hashes[chosen], grams.steps[chosen], places)
                if on_progress is not None:
                    on_progress(stop - start)

    def read(self, place: int, enough: Callable[[str], bool]) -> str:
        """The text from a place on: to the document's end, or longer and longer until there is enough of it."""
        reader, start = self.data.parts[place >> PART_SHIFT], place & (1 << PART_SHIFT) - 1
        document = reader.place(reader.documents_of(start, 1)[0])
        rest, length = document.start + document.tokens - start, 64
        while True:
            text = self.spelling.text(reader.read(start, min(length, rest)))
            if length >= rest or enough(text):
                return text
            length *= 2

    def document(self, place: int) -> tuple[int, int]:
        """Part and number of the document at a place."""
        part, token = place >> PART_SHIFT, place & (1 << PART_SHIFT) - 1
        return part, self.data.parts[part].documents_of(token, 1)[0]


class Spelling:
    """The text of token ids, and which of its bytes are of which token."""

    def __init__(self, tokenizer: Tokenizer):
        contents = tokenizer.token_contents()
        self.end_of_text, self.unknown = tokenizer.end_of_text, tokenizer.unknown
        contents[self.end_of_text] = b"\n"  # Keeps apart what it stands between.
        if self.unknown is not None:
            contents[self.unknown] = contents[self.unknown] or "\ufffd".encode()  # Nothing would join its neighbours.
        self.sizes = np.array([len(content) for content in contents])
        self.begins = np.cumsum(self.sizes) - self.sizes
        self.content = np.frombuffer(b"".join(contents), np.uint8)

    def bytes_of(self, tokens: np.ndarray) -> bytes:
        sizes = self.sizes[tokens]
        ends = np.cumsum(sizes)
        shift = np.repeat(self.begins[tokens] - (ends - sizes), sizes)
        return self.content[shift + np.arange(len(shift))].tobytes()

    def text(self, tokens: np.ndarray) -> str:
        """Bytes that are not UTF-8, of a character that is not there whole, are a surrogate each."""
        return self.bytes_of(tokens).decode("utf-8", "surrogateescape")


class Stretch(NamedTuple):
    """Consecutive tokens of a part."""

    tokens: np.ndarray
    first: np.ndarray
    """The step at which each was read first."""
    start: int
    """Of the first token, in the part."""
    skip: int
    """Bytes at the beginning that belong to a word before."""
    ends: int
    """End-of-text tokens before it."""

    def ngrams(self, n: int, spelling: Spelling, reader: TokenReader, last: bool) -> tuple[Grams, "Tail"]:
        """All N-grams of whole words, and what of the stretch the next one has to begin with."""
        text = spelling.text(self.tokens)
        token_ends = np.cumsum(spelling.sizes[self.tokens])
        words = find_words(text)
        starts, stops = byte_offsets(text, words.starts), byte_offsets(text, words.ends - 1)
        count = len(starts) - (words.open and not last)  # The last word may go on.
        mine = slice(int(np.searchsorted(starts, self.skip)), count)
        begins = np.searchsorted(token_ends, starts, side="right")
        of_words = begins[mine], np.searchsorted(token_ends, stops[mine], side="right")
        first = self.first
        if spelling.unknown is not None:
            first = np.where(self.tokens == spelling.unknown, NEVER, first)  # Words that nobody can know.
        read = largest(first, *of_words)
        documents = np.cumsum(self.tokens == spelling.end_of_text)[of_words[0]] + self.ends
        documents //= reader.sequences_per_document
        hashes = ngram_hashes(words.hashes[mine], n)
        steps = read[: len(hashes)].copy()
        for offset in range(1, n):
            np.maximum(steps, read[offset : offset + len(hashes)], out=steps)
        steps[documents[: len(hashes)] != documents[n - 1 :][: len(hashes)]] = NEVER
        grams = Grams(hashes, steps, self.start + of_words[0][: len(hashes)].astype(np.int64))
        keep = max(mine.start, count - (n - 1))  # The first word of the N-grams that need what follows.
        token, skip = len(self.tokens), 0
        if keep < len(starts):
            token = int(begins[keep])
            skip = int(starts[keep] - (token_ends[token] - spelling.sizes[self.tokens[token]]))
        elif not last:
            token -= 1  # The next stretch may begin inside of a word that this token is a part of.
        return grams, self.tail(token, skip, spelling)

    def tail(self, token: int, skip: int, spelling: Spelling) -> "Tail":
        ends = self.ends + int((self.tokens[:token] == spelling.end_of_text).sum())
        tokens, first = self.tokens[token:], self.first[token:]
        if len(tokens) > LONGEST_TAIL:
            ends += int((tokens[:-1] == spelling.end_of_text).sum())
            tokens, first, skip = tokens[-1:], np.full(1, NEVER, np.int32), 0
        return Tail(tokens, first, skip, ends)


class Tail(NamedTuple):
    """The end of a stretch, with which N-grams begin that need what follows."""

    tokens: np.ndarray = np.empty(0, np.int64)
    first: np.ndarray = np.empty(0, np.int32)
    skip: int = 0
    ends: int = 0

    def before(self, tokens: np.ndarray, first: np.ndarray, start: int) -> Stretch:
        return Stretch(
            np.concatenate([self.tokens, tokens]), np.concatenate([self.first, first]), start - len(self.tokens),
            self.skip, self.ends,
        )  # fmt: skip

    def past(self, tokens: np.ndarray, first: np.ndarray, stop: int, spelling: Spelling) -> "Tail":
        """After a stretch of which nothing was read: its last token, so that a word which it is a part of is not read either."""
        stretch = self.before(tokens, first, stop - len(tokens))
        return stretch.tail(len(stretch.tokens) - 1, 0, spelling)


def byte_offsets(text: str, characters: np.ndarray) -> np.ndarray:
    """Where these characters of a text begin in its UTF-8; a surrogate stands for one byte."""
    if text.isascii():
        return characters
    codes = code_points(text)
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    sizes[(codes >= 0xD800) & (codes < 0xE000)] = 1
    return (np.cumsum(sizes) - sizes)[characters]


def largest(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The largest of the values at [start, end] of each pair, the end included."""
    if not len(starts):
        return values[:0]
    bounds = np.stack([starts, ends + 1], axis=1).ravel()
    return np.maximum.reduceat(np.append(values, np.int32(NEVER)), bounds)[::2]
