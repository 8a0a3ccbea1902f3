"""The orders of training samples as pure arithmetic: sample k of a run is a function of (fingerprint, seed, k), and nothing is stored.

A shuffled epoch is a keyed permutation of the samples: a Feistel network over the smallest even number of bits that holds them,
with cycle walking to stay inside the range (Black & Rogaway 2002). So start-up costs nothing at any corpus size, an epoch repeats
no sample, and any number of ranks can resume at any position. The stream order has no key: row b of every batch goes on where
row b of the batch before ended.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ROUNDS = 8

BLOCK = 4096
"""Positions that are permuted together, as a micro-batch's few cost nearly as much by themselves."""


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
        size = min(BLOCK, self.samples)  # A block of several small epochs would have as many keys.
        blocks = positions // size
        if blocks.size and (blocks == blocks[0]).all():
            return block_of_windows(self, int(blocks[0]), size)[positions % size]
        return self._permuted(positions)

    def _permuted(self, positions: np.ndarray) -> np.ndarray:
        epochs = positions // self.samples
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(positions[chosen] % self.samples, self.samples, self._keys(int(epoch)))
        return result

    def positions(self, windows: np.ndarray, below: int) -> np.ndarray:
        """Every position < `below` at which one of these windows stands, epoch by epoch: the inverse of `windows`."""
        windows = np.asarray(windows, dtype=np.int64)
        epochs = range(-(-below // self.samples)) if len(windows) else ()
        found = [epoch * self.samples + invert(windows, self.samples, self._keys(epoch)) for epoch in epochs]
        result = np.concatenate([np.empty(0, np.int64), *found])
        return result[result < below]

    def _keys(self, epoch: int) -> np.ndarray:
        return round_keys(f"{self.fingerprint}/{self.seed}/{epoch}")


@lru_cache(maxsize=64)
def block_of_windows(order: SampleOrder, block: int, size: int) -> np.ndarray:
    """`order.windows` of the positions [block x size, (block + 1) x size)."""
    return order._permuted(np.arange(block * size, (block + 1) * size))


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
        samples = self._sorted(pool, lengths)[1]
        batch = int(permute(np.array([place]), self.pool, self._keys(pool))[0])
        return samples[batch * self.sequences : (batch + 1) * self.sequences]

    def positions(self, samples: np.ndarray, below: int, lengths: np.ndarray) -> np.ndarray:
        """Every position (step x sequences + row) < `below` at which one of these samples stands, given all lengths."""
        size = self.pool * self.sequences
        shuffled = self.shuffled.positions(samples, -(-below // size) * size)
        found = [np.empty(0, np.int64)]
        for pool in np.unique(shuffled // size).tolist():
            places = np.flatnonzero(np.isin(self._sorted(pool, lengths)[0], shuffled))
            steps = pool * self.pool + invert(places // self.sequences, self.pool, self._keys(pool))
            found.append(steps * self.sequences + places % self.sequences)
        result = np.concatenate(found)
        return result[result < below]

    def _sorted(self, pool: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A pool by length: where in the shuffled order each place of it comes from, and the sample there."""
        size = self.pool * self.sequences
        shuffled = np.arange(pool * size, (pool + 1) * size)
        samples = self.shuffled.windows(shuffled)
        by_length = np.argsort(lengths[samples], kind="stable")
        return shuffled[by_length], samples[by_length]

    def _keys(self, pool: int) -> np.ndarray:
        return round_keys(f"{self.shuffled.fingerprint}/{self.shuffled.seed}/pool {pool}")


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

    def positions(self, start: int, stop: int, below: int) -> np.ndarray:
        """Every position < `below` whose sample reads, or predicts, one of the tokens [start, stop)."""
        found = [np.empty(0, np.int64)]
        for row in range(start // self.length, min(self.rows, -(-stop // self.length))):
            begin, end = start - row * self.length, stop - row * self.length
            chunks = np.arange(max(0, (begin - 1) // self.context), min(self.steps, -(-end // self.context)))
            epochs = np.arange(-(-below // (self.steps * self.rows)))
            found.append(((epochs[:, None] * self.steps + chunks) * self.rows + row).ravel())
        result = np.concatenate(found)
        return result[result < below]

    def begins(self, step: int) -> bool:
        """Whether the streams begin at this step: an epoch's first."""
        return step % self.steps == 0


def round_keys(name: str) -> np.ndarray:
    """The keys of a permutation, uint64 of shape (ROUNDS,)."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(8 * ROUNDS), dtype="<u8")


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Apply the permutation of [0, size) that `keys` (uint64, one a round) name to each index; int64 in, int64 out."""
    return _walk(indices, size, lambda values, half: _feistel(values, half, keys))


def invert(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The inverse of `permute`."""

    def backwards(values: np.ndarray, half: int) -> np.ndarray:
        # A Feistel network with its halves exchanged and its keys in reverse undoes itself.
        return _exchanged(_feistel(_exchanged(values, half), half, keys[::-1]), half)

    return _walk(indices, size, backwards)


def _walk(indices: np.ndarray, size: int, network: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Apply a permutation of more than `size` values until each value is below `size`."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = np.asarray(indices).astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = network(values[outside], half)
        outside = values >= size
    return values.astype(np.int64)


def _exchanged(values: np.ndarray, half: int) -> np.ndarray:
    shift = np.uint64(half)
    return (values & np.uint64((1 << half) - 1)) << shift | values >> shift


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
