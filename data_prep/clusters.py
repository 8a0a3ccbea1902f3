"""Documents that belong together: groups with an equal key from sorted rows on disk, and a union-find over all pairs.

Work is on arrays: a chunk of pairs joins all its trees at once.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 2**20


class Clusters:
    """A forest over the numbers 0 .. len(`parent`) - 1, each at first a tree of its own; the root of a tree is its least number.

    The result is the same for any order of pairs.

    Args:
        parent: int64, which is written to; in memory, or mapped from a file.
    """

    def __init__(self, parent: np.ndarray):
        self.parent = parent
        for begin in range(0, len(parent), CHUNK):
            end = min(begin + CHUNK, len(parent))
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


class Groups(NamedTuple):
    """Rows on disk, of keys and a number, in which those that share all keys stand together."""

    numbers: np.ndarray
    """int64; in one group they ascend."""
    place: np.ndarray
    """Which of its group each one is, from 0."""
    sizes: np.ndarray
    """Of the group of each one."""


def groups(chunks: Iterable[np.ndarray], keys: int, window: int) -> Iterator[Groups]:
    """Rows of `keys` columns and a number as groups, as many at once as there are in a chunk.

    A group that is larger than a chunk comes in several goes: then its first number and the last `window` come again.

    Args:
        chunks: rows as `Rows.chunks` gives them; those with one key in ascending order of numbers.
    """
    carried: np.ndarray | None = None
    for chunk in chunks:
        rows = chunk if carried is None else np.concatenate([carried, chunk])
        # Stable, so numbers stay in order.
        rows = rows[np.lexsort(rows.T[:keys][::-1])]
        firsts = np.flatnonzero(np.r_[True, (rows[1:, :keys] != rows[:-1, :keys]).any(axis=1)])
        sizes = np.diff(firsts, append=len(rows))
        place = np.arange(len(rows)) - np.repeat(firsts, sizes)
        sizes = np.repeat(sizes, sizes)
        yield Groups(rows[:, keys].astype(np.int64), place, sizes)
        # The next chunk has these keys only where a chunk holds nothing else.
        last = rows[:, 0] == rows[-1, 0]
        carried = rows[last & ((place == 0) | (sizes - place <= window))]


def first_pairs(found: Groups) -> np.ndarray:
    """Pairs of the first number of each group with each other one, of shape (pairs, 2)."""
    starts = np.arange(len(found.numbers)) - found.place
    later = found.place > 0
    return np.stack([found.numbers[starts[later]], found.numbers[later]], axis=1)


def near_pairs(found: Groups, window: int, roots: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of each number, but the first two of its group, with the `window` before it but the first, whose roots differ.

    Together with `first_pairs` these are all pairs of groups of up to window + 2; their number grows no faster than that of rows.

    Args:
        roots: of every number there is.
    """
    many = found.sizes > 2
    numbers, place = found.numbers[many], found.place[many]
    if len(numbers) == 0:
        return
    own = np.asarray(roots[numbers])
    starts = np.flatnonzero(place == 0)
    apart = np.minimum.reduceat(own, starts) != np.maximum.reduceat(own, starts)
    apart = np.repeat(apart, np.diff(starts, append=len(own)))
    numbers, place, own = numbers[apart], place[apart], own[apart]
    for distance in range(1, window + 1):
        later = np.flatnonzero(place > distance)
        if len(later) == 0:
            return
        later = later[own[later] != own[later - distance]]
        yield np.stack([numbers[later - distance], numbers[later]], axis=1)
