"""The order of training samples as pure arithmetic: sample k of a run is a function of (fingerprint, seed, k), and nothing is stored.

An epoch is a keyed permutation of the samples: a Feistel network over the smallest even number of bits that holds them, with
cycle walking to stay inside the range (Black & Rogaway 2002). So start-up costs nothing at any corpus size, an epoch repeats no
sample, and any number of ranks can resume at any position.
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
        digest = hashlib.shake_256(f"{self.fingerprint}/{self.seed}/{epoch}".encode()).digest(8 * ROUNDS)
        return np.frombuffer(digest, dtype="<u8")


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
