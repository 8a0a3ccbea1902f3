"""The union-find and the arrays on disk against other ways to the same."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep import disk_arrays
from data_prep.clusters import Clusters, equal_pairs
from data_prep.disk_arrays import Lists, Partitions

RNG = np.random.default_rng(0)
COUNT = 20_000
CHAIN = np.stack([np.arange(COUNT - 1), np.arange(1, COUNT)], axis=1)
PAIRS = {
    "none": np.empty((0, 2), np.int64),
    "random": RNG.integers(0, COUNT, (12_000, 2)),
    "chain upwards": CHAIN,
    "chain downwards": CHAIN[::-1],
    "chain in any order": RNG.permutation(CHAIN),
    "star around the last": np.stack([np.full(COUNT, COUNT - 1), RNG.permutation(COUNT)], axis=1),
    "repeated and with themselves": np.repeat([[5, 3], [3, 3], [9, 5]], 50, axis=0),
}


@pytest.mark.parametrize("chunk", [COUNT, 997])
@pytest.mark.parametrize("kind", PAIRS)
def test_clusters_are_the_connected_components(tmp_path, kind, chunk):
    pairs = PAIRS[kind]
    clusters = Clusters(tmp_path / "clusters", COUNT)
    for begin in range(0, len(pairs), chunk):
        clusters.join(*pairs[begin : begin + chunk].T)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(COUNT, COUNT))
    labels = connected_components(graph)[1]
    least = np.full(COUNT, COUNT)
    np.minimum.at(least, labels, np.arange(COUNT))
    assert np.array_equal(clusters.roots(np.arange(COUNT)), least[labels])


@pytest.mark.parametrize("part_bytes", [2**20, 640])
@pytest.mark.parametrize("keys", [1, 2])
def test_all_that_share_a_key_hang_together_and_near_ones_are_paired(tmp_path, monkeypatch, keys, part_bytes):
    monkeypatch.setattr(disk_arrays, "PART_BYTES", part_bytes)
    monkeypatch.setattr(disk_arrays, "MAX_PARTS", 6)
    window, numbers = 4, np.arange(3000)
    # Many keys of a few rows, and one that is larger than a part.
    names = np.where(RNG.random(3000) < 0.2, 0, RNG.integers(1, 900, 3000)).astype(np.uint64)
    values = np.stack([names * np.uint64(0x9E3779B97F4A7C15), names % np.uint64(7)], axis=1)[:, :keys]
    partitions = Partitions(tmp_path / "parts", keys + 1, 3000)
    for some in np.array_split(numbers, 11):
        partitions.add(np.column_stack([values[some], some.astype(np.uint64)]))
    assert partitions.count == (6 if part_bytes == 640 else 1)
    found = set()
    for part in range(partitions.count):
        for pairs in equal_pairs(partitions, part, keys, window):
            found |= set(map(tuple, pairs.tolist()))
    wanted = set()
    for name in np.unique(names):
        own = np.flatnonzero(names == name).tolist()
        wanted |= {(own[0], other) for other in own[1:]}
        wanted |= {(own[a], own[b]) for b in range(len(own)) for a in range(max(0, b - window), b)}
    assert wanted <= found
    assert all(names[a] == names[b] and a < b for a, b in found)
    assert len(found) <= (window + 1) * 3000


def test_parts_hold_every_row_once_in_ranges_of_the_first_column(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_arrays, "PART_BYTES", 1000)
    monkeypatch.setattr(disk_arrays, "BUFFER_BYTES", 3000)
    rows = RNG.integers(0, 2**64, (1000, 2), dtype=np.uint64)
    rows[:2, 0] = 0, 2**64 - 1
    partitions = Partitions(tmp_path / "parts", 2, len(rows))
    for some in np.array_split(rows, 9):
        partitions.add(some)
    parts = [np.concatenate([*partitions.chunks(k), np.empty((0, 2), np.uint64)]) for k in range(partitions.count)]
    assert partitions.count == 16
    assert all(a[:, 0].max() < b[:, 0].min() for a, b in pairwise(parts))
    found = np.concatenate(parts)
    assert np.array_equal(found[np.lexsort(found.T)], rows[np.lexsort(rows.T)])


def test_lists_are_taken_in_any_order_and_as_often_as_wanted(tmp_path):
    rows = [RNG.integers(0, 256, size) for size in (0, 3, 1, 0, 0, 7, 2, 0)]
    lists = Lists(tmp_path / "lists", np.uint8)
    for some in (rows[:3], rows[3:]):
        lists.add(np.concatenate(some), np.array([len(row) for row in some]))
    lists.finish()
    wanted = np.array([7, 5, 5, 0, 1, 6, 2])
    values, lengths = lists.take(wanted)
    assert lengths.tolist() == lists.lengths(wanted).tolist() == [len(rows[k]) for k in wanted]
    assert values.tolist() == np.concatenate([rows[k] for k in wanted]).tolist()


def test_lists_may_all_be_empty(tmp_path):
    lists = Lists(tmp_path / "lists", np.uint64)
    lists.add(np.empty(0, np.uint64), np.zeros(3, np.int64))
    lists.finish()
    values, lengths = lists.take(np.array([2, 0]))
    assert (values.tolist(), lengths.tolist()) == ([], [0, 0])
