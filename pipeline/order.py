"""The orders of training samples as pure arithmetic: sample k of a run is a function of (fingerprint, seed, k), and nothing is stored.

A shuffled epoch is a keyed permutation of the samples: a Feistel network over the smallest even number of bits that holds them,
with cycle walking to stay inside the range (Black & Rogaway 2002). So start-up costs nothing at any corpus size, an epoch repeats
no sample, and any number of ranks can resume at any position. The stream order has no key: row b of every batch goes on where
row b of the batch before ended.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

ROUNDS = 8


@dataclass(frozen=True)
class SampleOrder:
    """Which window of the corpus each sample of a run is.

    Args:
        fingerprint: of the token manifest, so that another corpus has another order.
        seed: of the run.
        samples: windows in one epoch.
    """

    fingerprint: str
    seed: int
    samples: int

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError("an order needs at least one sample")

    def windows(self, positions: np.ndarray) -> np.ndarray:
        """The window (0 <= w < samples) of each sample position k >= 0; epoch e holds the positions [e x samples, (e+1) x samples)."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs = positions // self.samples
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(positions[chosen] % self.samples, self.samples, self._keys(int(epoch)))
        return result

    def _keys(self, epoch: int) -> np.ndarray:
        return round_keys(f"{self.fingerprint}/{self.seed}/{epoch}")


@dataclass(frozen=True)
class LengthOrder:
    """A shuffled order whose batches hold samples of like length, so that little of a batch is padding.

    The samples of a pool (so many consecutive batches of the shuffled order) are sorted by length and cut into batches, which
    come in a shuffled order again. Every batch sees the same samples whoever asks for it, in whatever order.

    Args:
        shuffled: the order that the pools are taken from.
        sequences: samples in a global batch.
        pool: batches in a pool; 1 leaves the shuffled order as it is, but for the places inside a batch.
    """

    shuffled: SampleOrder
    sequences: int
    pool: int

    def samples(self, step: int, lengths: np.ndarray) -> np.ndarray:
        """The samples of global batch `step`, the shortest first, given the length of every sample."""
        pool, place = divmod(step, self.pool)
        size = self.pool * self.sequences
        samples = self.shuffled.windows(np.arange(pool * size, (pool + 1) * size))
        samples = samples[np.argsort(lengths[samples], kind="stable")]
        keys = round_keys(f"{self.shuffled.fingerprint}/{self.shuffled.seed}/pool {pool}")
        batch = int(permute(np.array([place]), self.pool, keys)[0])
        return samples[batch * self.sequences : (batch + 1) * self.sequences]


@dataclass(frozen=True)
class StreamOrder:
    """The corpus as `rows` streams side by side, read from left to right (Zaremba et al. 2014, section 4.1).

    Args:
        tokens: in the corpus.
        rows: sequences in a global batch; row b is the b-th of as many equal parts of the corpus, what is left over is not read.
        context: tokens of each row that a batch goes on by.
    """

    tokens: int
    rows: int
    context: int

    @property
    def length(self) -> int:
        """Tokens in a stream."""
        return self.tokens // self.rows

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return (self.length - 1) // self.context

    def starts(self, positions: np.ndarray) -> np.ndarray:
        """Where the sample at each position (step x rows + row) begins in the corpus."""
        steps, rows = np.divmod(np.asarray(positions, dtype=np.int64), self.rows)
        return rows * self.length + steps % self.steps * self.context

    def begins(self, step: int) -> bool:
        """Whether the streams begin at this step: an epoch's first."""
        return step % self.steps == 0


def round_keys(name: str) -> np.ndarray:
    """The keys of a permutation, uint64 of shape (ROUNDS,)."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(8 * ROUNDS), dtype="<u8")


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Apply the permutation of [0, size) that `keys` (uint64, one a round) name to each index; int64 in, int64 out."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = np.asarray(indices).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << shift | right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
