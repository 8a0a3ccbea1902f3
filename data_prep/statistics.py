"""What a corpus is made of, in numbers: counts by source, lengths of documents, frequencies of tokens."""

from dataclasses import dataclass

import numpy as np

from data_prep.corpus import documents_by_source
from data_prep.files import InputError
from data_prep.shards import Manifest, read_index

CHUNK_TOKENS = 2**18  # Of 64-bit numbers that stay in the cache.
BLOCK_TOKENS = 2**14
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Count:
    """The documents of one source in one split."""

    split: str
    source: str
    documents: int
    text_bytes: int
    tokens: int
    bytes_per_token: float
    """Without end-of-text tokens."""


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a source are in a split, in tokens, end-of-text included."""

    source: str
    bins: np.ndarray
    """Documents of 1, 2 to 3, 4 to 7, 8 to 15 ... tokens."""
    shortest: int
    percentiles: tuple[int, ...]
    """Those of `PERCENTILES`."""
    longest: int


def counts(manifest: Manifest) -> list[Count]:
    """Documents, bytes and tokens of every split and source, from the manifest alone."""
    found = []
    for split, shards in manifest.splits.items():
        for source in dict.fromkeys(shard.source for shard in shards):
            own = [shard for shard in shards if shard.source == source]
            documents, size, tokens = (
                sum(getattr(shard, name) for shard in own) for name in ("documents", "text_bytes", "tokens")
            )
            ratio = size / max(tokens - documents * manifest.sequences_per_document, 1)
            found.append(Count(split, source, documents, size, tokens, ratio))
    return found


def document_lengths(manifest: Manifest, split: str) -> list[Lengths]:
    """The lengths of the documents of each source, of pairs both sides together, from the indices alone, one at a time."""
    found = []
    for source in documents_by_source(manifest, split):
        values, times = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for shard in (shard for shard in manifest.shards(split) if shard.source == source):
            lengths, _ = read_index(manifest.folder / f"{shard.file}.idx", manifest.sequences_per_document)
            # What is kept grows with the number of different lengths, not with that of documents.
            own, counts = np.unique(lengths.sum(axis=1, dtype=np.int64), return_counts=True)
            values, places = np.unique(np.concatenate([values, own]), return_inverse=True)
            times = np.bincount(places, np.concatenate([times, counts])).astype(np.int64)
        ends = np.cumsum(times)
        ranks = np.rint(np.array(PERCENTILES) / 100 * (ends[-1] - 1))
        ordered = values[np.searchsorted(ends, ranks, side="right")].tolist()
        bins = np.bincount(exponents(values), times).astype(np.int64)
        found.append(Lengths(source, bins, int(values[0]), tuple(ordered), int(values[-1])))
    return found


def exponents(lengths: np.ndarray) -> np.ndarray:
    """The k for which each of these is from 2^k to 2^(k + 1) - 1; zeros are with the ones."""
    return np.frexp(np.maximum(lengths, 1))[1] - 1


def token_counts(manifest: Manifest, split: str, most: int | None = None) -> np.ndarray:
    """How often each id of the vocabulary is in a split, int64 (vocab_size,).

    Args:
        most: read about so many tokens at most, in blocks that are spread evenly over the split; None for all of them.
    """
    reader = manifest.open(split)
    starts, size = windows(len(reader), most)
    totals = np.zeros(manifest.vocab_size, np.int64)
    for start in starts:
        tokens = reader.read(start, min(size, len(reader) - start))
        if int(tokens.min()) < 0 or int(tokens.max()) >= manifest.vocab_size:
            raise InputError(
                f"Split {split} holds ids from {int(tokens.min())} to {int(tokens.max())}, the vocabulary has "
                f"{manifest.vocab_size}: `python -m data_prep verify` says which documents are damaged."
            )
        totals += np.bincount(tokens, minlength=manifest.vocab_size)
    return totals


def windows(tokens: int, most: int | None) -> tuple[list[int], int]:
    """Where the blocks begin that are read of so many tokens, and their size; the last one may be shorter."""
    if most is None or tokens <= most:
        return list(range(0, tokens, CHUNK_TOKENS)), CHUNK_TOKENS
    blocks = max(1, most // BLOCK_TOKENS)
    return [block * tokens // blocks for block in range(blocks)], min(BLOCK_TOKENS, most)
