"""What a corpus is made of, in numbers: counts by source, lengths of documents, frequencies of tokens."""

from dataclasses import dataclass

import numpy as np

from data_prep.corpus import documents_by_source
from data_prep.files import InputError
from data_prep.shards import Manifest

CHUNK_TOKENS = 2**22
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
    """The lengths of the documents of each source, of pairs both sides together, from the indices alone."""
    lengths = manifest.open(split).sequence_lengths().sum(axis=1, dtype=np.int64)
    found = []
    first = 0
    for source, documents in documents_by_source(manifest, split).items():
        own = lengths[first : first + documents]
        first += documents
        ordered = np.percentile(own, PERCENTILES, method="nearest").astype(int)
        found.append(
            Lengths(source, power_bins(own), int(own.min()), tuple(map(int, ordered)), int(own.max())),
        )
    return found


def power_bins(lengths: np.ndarray) -> np.ndarray:
    """How many of these are from 2^k to 2^(k + 1) - 1, for k from 0; zeros are with the ones."""
    exponents = np.frexp(np.maximum(lengths, 1))[1] - 1
    return np.bincount(exponents)


def token_counts(manifest: Manifest, split: str) -> np.ndarray:
    """How often each id of the vocabulary is in a split, int64 (vocab_size,); reads all of its tokens."""
    reader = manifest.open(split)
    totals = np.zeros(manifest.vocab_size, np.int64)
    for start in range(0, len(reader), CHUNK_TOKENS):
        tokens = reader.read(start, min(CHUNK_TOKENS, len(reader) - start))
        if int(tokens.min()) < 0 or int(tokens.max()) >= manifest.vocab_size:
            raise InputError(
                f"Split {split} holds ids from {int(tokens.min())} to {int(tokens.max())}, the vocabulary has "
                f"{manifest.vocab_size}: `python -m data_prep verify` says which documents are damaged."
            )
        totals += np.bincount(tokens, minlength=manifest.vocab_size)
    return totals
