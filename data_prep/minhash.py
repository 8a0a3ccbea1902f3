"""Near-duplicates by MinHash with banding (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4).

The signature of a document is bands x rows hashes; two documents whose sets of N-grams have Jaccard similarity s agree in a
hash with probability s and in all rows of at least one band with 1 - (1 - s^rows)^bands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

from data_prep import document
from data_prep.disk_arrays import Lists
from data_prep.files import InputError
from data_prep.ngrams import mixed
from data_prep.shingles import Unit, shingles

SIGNATURES = f"rensa {RMinHash.ALGORITHM_VERSION}"
"""The version of the hashes, which are part of what a result depends on."""
SEED = 1
ROWS_AT_ONCE = 512
COMPARED_AT_ONCE = 2**21
MAX_HASHES = 2**14


@dataclass(frozen=True)
class MinhashConfig:
    """Which documents are near-duplicates: those with nearly the same N-grams."""

    ngram: int = 5
    """Words in an N-gram. A document with fewer is one N-gram: all its words."""
    unit: Unit = "words"
    """`characters`: N-grams of characters, for scripts that put no space between words; 5 of them are about 2 words."""
    bands: int = 20
    """Documents are compared if all hashes of at least one band agree."""
    rows: int = 6
    """Hashes of a band. GPT-3's 10 hashes are `bands` 10 and `rows` 1."""
    threshold: float | None = 0.8
    """Jaccard similarity of the N-grams from which documents are near-duplicates. `null`: (1/bands)^(1/rows); of the pairs
    just above that, a third shares no band and is missed, so bands and rows are better chosen for a lower one."""
    verify: bool = True
    """Compare the N-grams of documents that share a band. Off, a shared band is enough, as in FineWeb (`bands` 14, `rows` 8),
    and `threshold` is not used."""
    across: bool = True
    """Compare documents of different sources, too. Off, near-duplicates are looked for inside each source."""

    def __post_init__(self) -> None:
        for name in ("ngram", "bands", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"dedup.minhash.{name} is {getattr(self, name)}: it has to be at least 1.")
        if self.bands * self.rows > MAX_HASHES:
            raise InputError(
                f"dedup.minhash has {self.bands} bands of {self.rows} rows: a signature has at most {MAX_HASHES} hashes, "
                "so set fewer."
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"dedup.minhash.threshold is {self.threshold}: a similarity is above 0 and at most 1.")

    @property
    def band_threshold(self) -> float:
        """(1/bands)^(1/rows), about where the chance to share a band rises fastest with similarity."""
        return (1 / self.bands) ** (1 / self.rows)

    @property
    def least_similarity(self) -> float:
        """From which similarity pairs are meant to be found."""
        return self.threshold if self.verify and self.threshold is not None else self.band_threshold

    def chance(self, similarity: float) -> float:
        """With which probability two documents of this similarity share a band."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def describe(self) -> str:
        """The settings and what follows from them, in one line."""
        least = self.least_similarity
        higher = (1 + least) / 2
        rule = (
            f"those that share a band are compared and dropped from {least:.3f}" if self.verify else "none is compared"
        )
        return (
            f"near-duplicates: {self.bands} bands of {self.rows} hashes over {self.ngram}-grams of {self.unit}, threshold "
            f"(1/{self.bands})^(1/{self.rows}) = {self.band_threshold:.3f}; {rule}; a pair of similarity {least:.3f} is found "
            f"with probability {self.chance(least):.3f}, of {higher:.3f} with {self.chance(higher):.3f}"
        )


class Keys(NamedTuple):
    """The band keys of those documents of a batch that have words on all sides."""

    documents: np.ndarray
    """Their places in the batch, int64."""
    keys: np.ndarray
    """uint64 of shape (documents, bands); the keys of different bands are different."""


def band_keys(batch: pa.RecordBatch, config: MinhashConfig) -> Keys:
    """A hash of each band of each document's signature; of pairs, one band of text and target together."""
    sides = [shingles(texts, config.ngram, config.unit) for texts in document.sides(batch).values()]
    having = np.logical_and.reduce([lengths > 0 for _, lengths in sides])
    total = np.broadcast_to(np.arange(config.bands, dtype=np.uint64), (int(having.sum()), config.bands))
    for hashes, lengths in sides:
        wanted = hashes[np.repeat(having, lengths)]
        for_bands = signatures(wanted, lengths[having], config.bands * config.rows)
        for_bands = for_bands.reshape(-1, config.bands, config.rows).astype(np.uint64)
        for row in range(config.rows):
            total = mixed(total ^ for_bands[:, :, row])
    return Keys(np.flatnonzero(having), total)


def signatures(hashes: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """MinHash signatures of sets given one after the other, as uint32 of shape (sets, count)."""
    found = np.empty((len(lengths), count), np.uint32)
    ends = np.r_[0, np.cumsum(lengths)].astype(np.uint64)
    for begin in range(0, len(lengths), ROWS_AT_ONCE):
        bounds = ends[begin : begin + ROWS_AT_ONCE + 1]
        own = hashes[int(bounds[0]) : int(bounds[-1])]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(own, bounds - bounds[0], count, SEED)
        found[begin : begin + ROWS_AT_ONCE] = matrix.to_rows()
    return found


def similarities(sets: Lists, pairs: np.ndarray) -> np.ndarray:
    """The Jaccard similarity of each pair of numbers, of shape (pairs, 2), whose sets are in `sets`; float64."""
    first, second = pairs.T
    sizes = sets.lengths(first) + sets.lengths(second)
    common = np.zeros(len(pairs), np.int64)
    for part in limited(sizes, COMPARED_AT_ONCE):
        values, lengths = sets.take(pairs[part].ravel())
        # The pair in the upper bits and the hash in the others: one number sorts many times faster than two columns.
        bits = np.uint64((part.stop - part.start - 1).bit_length())
        owners = np.repeat(np.arange(len(lengths), dtype=np.uint64) >> np.uint64(1), lengths)
        keys = values if bits == 0 else owners << (np.uint64(64) - bits) | values >> bits
        keys.sort()
        # A set has no repeats, so equal neighbours are one of each.
        equal = keys[1:][keys[1:] == keys[:-1]]
        owners = equal >> (np.uint64(64) - bits) if bits else np.zeros(len(equal), np.uint64)
        common[part] = np.bincount(owners.astype(np.int64), minlength=part.stop - part.start)
    return common / np.maximum(sizes - common, 1)


def limited(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive items whose sizes together are at most `most`, or one item that alone is larger."""
    ends = np.cumsum(sizes)
    begin = 0
    while begin < len(sizes):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield slice(begin, end)
        begin = end
