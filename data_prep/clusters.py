"""Documents that belong together: pairs with an equal key from partitions on disk, and a union-find over all pairs.

Work is on arrays: a chunk of pairs joins all its trees at once.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.disk_arrays import Partitions, zeros

CHUNK = 2**20


class Clusters:
    """A forest over the numbers 0 .. `count` - 1, each at first a tree of its own; the root of a tree is its least number.

    It is 8 bytes a number in a file that is mapped into memory. The result is the same for any order of pairs.
    """

    def __init__(self, path: Path, count: int):
        self.count = count
        self.parent = zeros(path, count, np.int64)
        for begin in range(0, count, CHUNK):
            end = min(begin + CHUNK, count)
            self.parent[begin:end] = np.arange(begin, end)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """The least number of each one's cluster, int64."""
        found = self.parent[numbers]
        while not np.array_equal(above := self.parent[found], found):
            found = above
        self.parent[numbers] = found
        return np.asarray(found)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Put the two numbers of each pair into one cluster."""
        while True:
            first, second = self.roots(first), self.roots(second)
            low, high = np.minimum(first, second), np.maximum(first, second)
            apart = low != high
            if not apart.any():
                return
            first, second = low[apart], high[apart]
            # Each root that has a lesser neighbour hangs below the least one.
            order = np.lexsort((first, second))
            low, high = first[order], second[order]
            changed = np.flatnonzero(np.r_[True, high[1:] != high[:-1]])
            tops = high[changed]
            self.parent[tops] = low[changed]
            # Chains of what was just hung are halved until all are flat: the logarithm of their length in rounds.
            while not np.array_equal(above := self.parent[self.parent[tops]], self.parent[tops]):
                self.parent[tops] = above


def equal_pairs(partitions: Partitions, part: int, keys: int, window: int) -> Iterator[np.ndarray]:
    """Pairs of numbers, of shape (pairs, 2), that share a key; the rows of a part are `keys` columns and the number.

    Of all rows with one key, each is paired with the first, so that all of them hang together, and with the `window`
    before it. Up to window + 2 rows give all their pairs; the number of pairs grows no faster than that of rows.
    """
    carried: np.ndarray | None = None
    for chunk in partitions.chunks(part):
        rows = chunk if carried is None else np.concatenate([carried, chunk])
        rows = rows[np.lexsort(rows.T[[keys, *reversed(range(keys))]])]
        same = (rows[1:, :keys] == rows[:-1, :keys]).all(axis=1)
        numbers = rows[:, keys].astype(np.int64)
        firsts = np.flatnonzero(np.r_[True, ~same])
        sizes = np.diff(firsts, append=len(rows))
        place = np.arange(len(rows)) - np.repeat(firsts, sizes)
        heads = np.repeat(numbers[firsts], sizes)
        yield np.stack([heads[place > 0], numbers[place > 0]], axis=1)
        for distance in range(1, window + 1):
            later = np.flatnonzero(place > distance)
            if len(later) == 0:
                break
            yield np.stack([numbers[later - distance], numbers[later]], axis=1)
        # Only a part that is larger than planned has another chunk: what its rows can still be paired with.
        carried = rows[(place == 0) | (np.repeat(sizes, sizes) - place <= window)]
