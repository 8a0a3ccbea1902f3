"""The documents of an indexed data set that others wrote, as a corpus has them: checked, and changed where that was asked for.

A document becomes one sequence (or, of pairs, two), each with its end-of-text token at the end and nowhere else.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.files import InputError
from data_prep.indexed import IndexedTokens
from data_prep.shards import HEADER
from data_prep.tokenizer import Tokenizer

BATCH_TOKENS = 2**20
LOOKED_AT = 2**10


@dataclass(frozen=True)
class Wishes:
    """How documents are taken."""

    pairs: bool = False
    """Each document is a text and its target."""
    append_end: bool = False
    """Texts that lack an end-of-text token get one."""
    cut: bool = False
    """Texts with end-of-text tokens inside are cut after each."""


@dataclass(frozen=True)
class Batch:
    """Some documents."""

    ids: np.ndarray
    """Of all their texts, one after another, in the type of the file."""
    lengths: np.ndarray
    """Ids of each text, end-of-text included; of pairs two a document."""
    text_bytes: np.ndarray
    """UTF-8 bytes of each text."""


class ForeignDocuments:
    """One pair of files. InputError on opening where its index is damaged or its ids are of a type that holds none."""

    def __init__(self, data: IndexedTokens, tokenizer: Tokenizer, wishes: Wishes):
        self.data, self.tokenizer, self.wishes = data, tokenizer, wishes
        self.sha256 = hashlib.sha256()
        """Of the `.bin` file, when all batches were read."""
        if np.dtype(data.dtype).kind == "f":
            raise InputError(f"{data.index} says that its ids are {data.dtype}: ids are whole numbers.")
        starts = np.concatenate([[0], np.cumsum(data.lengths, dtype=np.int64)])
        item, bounds = np.dtype(data.dtype).itemsize, data.boundaries
        self.sequences = np.diff(bounds)
        """Of each document."""
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(data.lengths) or (self.sequences < 0).any():
            raise InputError(f"{data.index} has documents that do not follow one another: copy it again.")
        if not np.array_equal(data.offsets, starts[:-1] * item) or data.bin.stat().st_size != starts[-1] * item:
            raise InputError(
                f"{data.bin} has gaps, overlaps or a rest that {data.index.name} does not name: copy it again."
            )
        if self.has_modes and np.any(
            np.fromfile(data.index, np.uint8, offset=data.index.stat().st_size - len(data.lengths))
        ):
            raise InputError(
                f"{data.index} has sequences that are not text (of several modes): only text can be adopted."
            )
        if wishes.pairs and (self.sequences != 2).any():
            k = int(np.flatnonzero(self.sequences != 2)[0])
            raise InputError(f"Document {k} of {data.bin} has {self.sequences[k]} sequences: of --pairs each has two.")
        self.starts = starts if wishes.pairs else starts[bounds]
        """At which token each text begins, and where the last ends."""

    @property
    def has_modes(self) -> bool:
        """Whether the index has a byte more for each sequence, which says of what kind it is."""
        plain = HEADER.size + 12 * len(self.data.lengths) + 8 * len(self.data.boundaries)
        return self.data.index.stat().st_size != plain

    def changes(self, dtype: str) -> str | None:
        """Why a corpus cannot have these files as they stand; None where it can."""
        if self.data.dtype != dtype:
            return f"its ids are {self.data.dtype}, and are written as {dtype}"
        if not self.wishes.pairs and (self.sequences > 1).any():
            return "its documents have several sequences, which are made one"
        if not self.wishes.pairs and (np.diff(self.starts) == 0).any():
            return "some of its documents are empty and are left out"
        if self.has_modes:
            return "its index has modes, which are left out"
        if self.wishes.append_end or self.wishes.cut:
            return "its end-of-text tokens are mended"
        return None

    def check_ends(self) -> None:
        """InputError, with the way out, where documents do not end in end-of-text and nothing was said about that."""
        ends, end = self.last_ids(), self.tokenizer.end_of_text
        looked = "looked at " if len(self.starts) - 1 > LOOKED_AT else ""
        documents, kind = sum(ends.values()), "texts" if self.wishes.pairs else "documents"
        if self.two_texts and not self.wishes.pairs and not self.wishes.cut:
            raise InputError(
                f"Each document of {self.data.bin} is two sequences that end in end-of-text: give --pairs if these are a text and "
                "its target, or --cut-at-end-of-text if each is a document."
            )
        if ends.get(end, 0) == documents or self.wishes.append_end:
            return
        # All texts may end in the same line end, too, so only a token that spells nothing is taken for such an end.
        if len(ends) == 1 and not dict(enumerate(self.tokenizer.token_contents())).get(other := next(iter(ends)), b"?"):
            name = self.tokenizer.decode([other])
            raise InputError(
                f"All {kind} of {self.data.bin} end in id {other}, which is {name!r} to this tokenizer, whose end-of-text is "
                f"id {end}: give --end-of-text {name!r} if that is it, or the tokenizer that made them."
            )
        raise InputError(
            f"{documents - ends.get(end, 0):,} of {documents:,} {kind} {looked}of {self.data.bin} do not end in end-of-text (id {end}), "
            "so a model would not learn where texts end: give --append-end-of-text, or the tokenizer that made them."
        )

    def last_ids(self) -> Counter[int]:
        """Which ids end texts, and how many each, of texts that are spread over the files; the rest is seen by `batches`."""
        stops = self.starts[1:][np.diff(self.starts) > 0]
        return Counter(self._ids_before(stops))

    @property
    def two_texts(self) -> bool:
        """Whether all documents are two sequences, each with an end-of-text token: pairs, as `data_prep` writes them."""
        if not len(self.sequences) or (self.sequences != 2).any() or (self.data.lengths == 0).any():
            return False
        stops = np.cumsum(self.data.lengths, dtype=np.int64)[::2]
        return all(last == self.tokenizer.end_of_text for last in self._ids_before(stops))

    def _read(self, begin: int, stop: int) -> np.ndarray:
        # Not mapped: the kernel maps much more around each place than was asked for, and a file may be larger than memory.
        return np.fromfile(
            self.data.bin, self.data.dtype, stop - begin, offset=begin * np.dtype(self.data.dtype).itemsize
        )

    def _ids_before(self, stops: np.ndarray) -> Iterator[int]:
        """The last ids of some of the texts that end there."""
        return (int(self._read(stop - 1, stop)[0]) for stop in spread(stops, LOOKED_AT).tolist())

    def batches(self) -> Iterator[Batch]:
        """All documents, some at a time, as they were wished for.

        Raises:
            InputError: an id is not in the vocabulary, or end-of-text stands where it should not.
        """
        sizes, each = TextSizes(self.tokenizer), 2 if self.wishes.pairs else 1
        done, count = 0, len(self.starts) - 1
        with open(self.data.bin, "rb") as stream:
            while done < count:
                begin = int(self.starts[done])
                stop = int(np.searchsorted(self.starts, begin + BATCH_TOKENS, "right")) - 1
                stop = min(max(stop - (stop - done) % each, done + each), count)
                ids = np.fromfile(stream, self.data.dtype, int(self.starts[stop]) - begin)
                self.sha256.update(ids.data)
                self._check_ids(ids, begin)
                ids, lengths = self._mended(ids, np.diff(self.starts[done : stop + 1]), done)
                yield Batch(ids, lengths, sizes.of(ids, lengths))
                done = stop

    def _check_ids(self, ids: np.ndarray, begin: int) -> None:
        if not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < self.tokenizer.vocab_size):
            return
        place = int(np.flatnonzero((ids < 0) | (ids >= self.tokenizer.vocab_size))[0])
        raise InputError(
            f"Document {self._document(begin + place)} of {self.data.bin} has id {ids[place]}, the tokenizer's vocabulary has "
            f"{self.tokenizer.vocab_size}: give the tokenizer that made them."
        )

    def _document(self, token: int) -> int:
        return (int(np.searchsorted(self.starts, token, "right")) - 1) // (2 if self.wishes.pairs else 1)

    def _mended(self, ids: np.ndarray, lengths: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        end = self.tokenizer.end_of_text
        if not self.wishes.pairs:
            lengths = lengths[lengths > 0]
        stops = np.cumsum(lengths)
        ended = ids == end
        if self.wishes.cut:
            stops = np.union1d(stops, np.flatnonzero(ended) + 1)
            lengths = np.diff(stops, prepend=0)
        closed = (lengths > 0) & ended[stops - 1] if len(ids) else np.zeros(len(lengths), bool)
        if not closed.all() and self.wishes.append_end:
            # The type of the file may be too narrow for it.
            ids = np.insert(ids.astype(np.int32), stops[~closed], end)
            lengths = lengths + ~closed
        elif not closed.all():
            place = int(np.flatnonzero(~closed)[0])
            raise InputError(
                f"Text {first + place} of {self.data.bin} does not end in end-of-text (id {end}): give --append-end-of-text."
            )
        if int(ended.sum()) != int(closed.sum()):
            ended[stops[closed] - 1] = False
            place = int(np.flatnonzero(ended)[0])
            raise InputError(
                f"Document {self._document(int(self.starts[first]) + place)} of {self.data.bin} has end-of-text (id {end}) inside: "
                "give --cut-at-end-of-text, and it is cut there."
            )
        return ids, lengths

    def encoded_alike(self, documents: int, tokens: int) -> tuple[int, int]:
        """Of how many documents, spread over the files, the first tokens are those that their text is encoded to; and of how many."""
        same = 0
        count = len(self.starts) - 1
        chosen = spread(np.arange(count), documents).tolist()
        for k in chosen:
            own = self._read(int(self.starts[k]), int(self.starts[k + 1])).tolist()
            if own and own[-1] == self.tokenizer.end_of_text:
                del own[-1]
            whole = self.tokenizer.encode(self.tokenizer.decode(own[:tokens]))
            # The last tokens of a piece depend on what came after it.
            kept = len(own) if len(own) <= tokens else tokens // 2
            same += whole[:kept] == own[:kept]
        return same, len(chosen)


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of these, evenly spread over them."""
    return values[np.arange(min(most, len(values))) * len(values) // max(1, min(most, len(values)))]


class TextSizes:
    """How many bytes of UTF-8 texts have, by their ids."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.table = None
        if tokenizer.lossless:
            self.table = tokenizer.token_bytes()
            self.table[tokenizer.end_of_text] = 0

    def of(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Bytes of each text, end-of-text not counted: int64 (texts,)."""
        stops = np.cumsum(lengths)
        if self.table is not None:
            sums = np.concatenate([[0], np.cumsum(self.table[ids])])
            return np.diff(sums[stops], prepend=0)
        # One text at a time: how many bytes such a token stands for depends on what is before it.
        texts = (
            self.tokenizer.decode(ids[stop - length : stop - 1]) for stop, length in zip(stops, lengths, strict=True)
        )
        return np.array([len(text.encode()) for text in texts], np.int64)
