"""A corpus repeated up to any size, no two repeats alike.

Plain repetition would measure what real text does not have: engines that remember words meet no new one after the first repeat, and
deduplication drops all the others. So each repeat has other words, the same at all places of the repeat, which keeps what filters look at: the
lengths of lines, punctuation, repeated lines and N-grams, and the frequent words. Of the words beyond the 256 most frequent half give way
to words of about their frequency, and a tenth of these are made of the beginning of one word and the end of another, so that new words keep
coming, as they do in text (Heaps' law). One document in 20 stands in a repeat twice, with a word in 200 changed the second time: near-duplicates.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.bench.corpora import Corpus
from data_prep.document import text_buffer, text_offsets

KEPT = 256
REPLACED, NEW = 0.5, 0.1
NEIGHBOURS = 0.25
"""A word gives way to one whose rank by frequency differs by this share at most."""
EDITED, EDITS = 0.05, 0.005
BATCH_BYTES = 2**22
WORD = np.zeros(256, bool)
WORD[[*b"0123456789_", *range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1), *range(0x80, 0x100)]] = True


class Repeats:
    """The repeats of a corpus; the first is the corpus itself.

    Memory: about 40 bytes a word of the corpus.
    """

    def __init__(self, corpus: Corpus, seed: int = 0):
        self.corpus, self.seed = corpus, seed
        data = np.frombuffer(text_buffer(corpus.texts), np.uint8)
        ends = text_offsets(corpus.texts)[1:] - text_offsets(corpus.texts)[0]
        # Text in fragments, words and what stands between them; documents end fragments.
        is_word = WORD[data]
        borders = np.zeros(len(data) + 1, bool)
        borders[1:-1] = is_word[1:] != is_word[:-1]
        borders[ends] = borders[0] = True
        starts = np.flatnonzero(borders)
        fragments = pa.Array.from_buffers(
            pa.binary(), len(starts) - 1, [None, pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(data)]
        )
        encoded = fragments.dictionary_encode()
        numbers, spellings = encoded.indices.to_numpy(), encoded.dictionary
        # Numbers by falling frequency, words first.
        counts = np.bincount(numbers, minlength=len(spellings))
        first_bytes = np.frombuffer(spellings.buffers()[2] or b"", np.uint8)[
            np.frombuffer(spellings.buffers()[1], np.int32, len(spellings))
        ]
        order = np.lexsort((-counts, ~WORD[first_bytes]))
        ranks = np.empty(len(order), np.int32)
        ranks[order] = np.arange(len(order), dtype=np.int32)
        self.spellings = spellings.take(pa.array(order))
        self.words = int(WORD[first_bytes].sum())
        self.ids = ranks[numbers]
        self.bounds = np.r_[0, np.searchsorted(starts, ends)]
        """Where each document begins in `ids`, and where the last one ends."""

    def batches(self, size: float) -> Iterator[pa.RecordBatch]:
        """Documents with the columns `id` and `text`, of about so many bytes of text together."""
        repeat = 0
        while size > 0:
            for batch in self.repeat(repeat):
                if size <= 0:
                    return
                length = len(text_buffer(batch.column("text")))
                if length > size:
                    # At least one document.
                    rows = np.searchsorted(
                        text_offsets(batch.column("text")), text_offsets(batch.column("text"))[0] + size
                    )
                    batch = batch.slice(0, max(int(rows), 1))
                yield batch
                size -= length
            repeat += 1

    def repeat(self, number: int) -> Iterator[pa.RecordBatch]:
        random = np.random.default_rng([self.seed, number])
        spellings = self.spelled_anew(random) if number else self.spellings
        lengths = np.diff(text_offsets(self.corpus.texts))
        pieces = np.cumsum(lengths) // BATCH_BYTES
        for piece in np.unique(pieces):
            places = np.flatnonzero(pieces == piece)
            twice = places[random.random(len(places)) < EDITED]
            yield self.written(number, spellings, places, twice, random)

    def written(
        self, number: int, spellings: pa.Array, places: np.ndarray, twice: np.ndarray, random: np.random.Generator
    ) -> pa.RecordBatch:
        """Documents at these places of the corpus, and after them edited copies of some."""
        again = self.ids[ranges(self.bounds[twice], self.bounds[twice + 1])]
        edits = (again < self.words) & (random.random(len(again)) < EDITS)
        again[edits] = self.ids[random.integers(len(self.ids), size=int(edits.sum()))]
        ids = np.concatenate([self.ids[self.bounds[places[0]] : self.bounds[places[-1] + 1]], again])
        every = np.concatenate([places, twice])
        bounds = np.r_[0, np.cumsum(self.bounds[every + 1] - self.bounds[every])]
        taken = spellings.take(pa.array(ids))
        offsets = np.frombuffer(taken.buffers()[1], np.int32, len(taken) + 1)[bounds]
        texts = pa.Array.from_buffers(pa.string(), len(every), [None, pa.py_buffer(offsets), taken.buffers()[2]])
        names = self.corpus.ids.take(pa.array(every))
        suffix = pa.array([f"-{number}"] * len(places) + [f"-{number}-edited"] * len(twice), pa.string())
        return pa.record_batch({"id": pc.call_function("binary_join_element_wise", [names, suffix, ""]), "text": texts})

    def spelled_anew(self, random: np.random.Generator) -> pa.Array:
        """The spellings of one repeat, by fragment."""
        others = np.arange(self.words)
        others = others[(others >= KEPT) & (random.random(self.words) < REPLACED)]
        span = others * NEIGHBOURS
        chosen = (others + random.uniform(-span, span)).astype(np.int64).clip(KEPT, self.words - 1)
        new = random.random(len(others)) < NEW
        ends = (others[new] + random.uniform(-span[new], span[new])).astype(np.int64).clip(KEPT, self.words - 1)
        heads, tails = self.halves(chosen[new], 0), self.halves(ends, 1)
        made = pc.call_function("binary_join_element_wise", [heads, tails, pa.scalar(b"", pa.binary())])
        places = np.arange(len(self.spellings))
        places[others] = chosen
        places[others[new]] = len(self.spellings) + np.arange(len(made))
        return pa.concat_arrays([self.spellings, made]).take(pa.array(places))

    def halves(self, words: np.ndarray, half: int) -> pa.Array:
        """The first or the second half of words, cut between characters."""
        taken = self.spellings.take(pa.array(words)).cast(pa.string())
        lengths = pc.call_function("utf8_length", [taken]).to_numpy()
        middle = (lengths + 1) // 2
        # One slice of a column for each length that there is: a dozen or two.
        parts, places = [pa.array([], pa.string())], [np.empty(0, np.int64)]
        for length in np.unique(middle).tolist():
            here = np.flatnonzero(middle == length)
            start, stop = (0, length) if half == 0 else (length, None)
            options = pc.SliceOptions(start=start, stop=stop)
            parts.append(pc.call_function("utf8_slice_codeunits", [taken.take(pa.array(here))], options))
            places.append(here)
        return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(places)))).cast(pa.binary())


def ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers of all ranges, one range after another."""
    lengths = stops - starts
    firsts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(firsts, lengths) + np.repeat(starts, lengths)
