"""The union-find and the arrays on disk against other ways to the same."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep import disk_arrays
from data_prep.clusters import Clusters, first_pairs, groups, near_pairs
from data_prep.disk_arrays import Lists, ListWriter, Rows, RowWriter, zeros

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
    clusters = Clusters(zeros(tmp_path / "clusters", COUNT, np.int64))
    for begin in range(0, len(pairs), chunk):
        clusters.join(*pairs[begin : begin + chunk].T)
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(COUNT, COUNT))
    labels = connected_components(graph)[1]
    least = np.full(COUNT, COUNT)
    np.minimum.at(least, labels, np.arange(COUNT))
    assert np.array_equal(clusters.roots(np.arange(COUNT)), least[labels])


def written(folder, pieces, columns, **options) -> Rows:
    """Rows of several files, each with its own numbers in the last column."""
    files, firsts = [], []
    first = 0
    for k, rows in enumerate(pieces):
        with RowWriter(folder, f"file{k}", columns, **options) as writer:
            for some in np.array_split(rows, 3):
                writer.add(some)
        own = sorted(folder.glob(f"file{k}-*"))
        files += own
        firsts += [first] * len(own)
        first += len(rows)
    return Rows(tuple(files), columns, tuple(firsts))


@pytest.mark.parametrize("part_bytes", [2**20, 640])
@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("files", [1, 11])
def test_all_that_share_a_key_hang_together_and_near_ones_are_paired(tmp_path, monkeypatch, keys, part_bytes, files):
    """As all pairs of each key's own list are, and not those whose roots are equal."""
    monkeypatch.setattr(disk_arrays, "PART_BYTES", part_bytes)
    monkeypatch.setattr(disk_arrays, "BUFFER_BYTES", 4 * part_bytes)
    rng = np.random.default_rng(5)
    window, numbers, parts = 4, np.arange(3000), 6
    # Many keys of a few rows, and one that is larger than a part.
    names = np.where(rng.random(3000) < 0.2, 0, rng.integers(1, 900, 3000)).astype(np.uint64)
    values = np.stack([names * np.uint64(0x9E3779B97F4A7C15), names % np.uint64(7)], axis=1)[:, :keys]
    own = [np.column_stack([values[some], some - some[0]]) for some in np.array_split(numbers, files)]
    rows = written(tmp_path, own, keys + 1)
    roots = rng.integers(0, 40, 3000)
    first, near = set(), set()
    for part in range(parts):
        for found in groups(rows.chunks(part, parts), keys, window):
            first |= set(map(tuple, first_pairs(found).tolist()))
            for pairs in near_pairs(found, window, roots):
                near |= set(map(tuple, pairs.tolist()))
    wanted_first, wanted_near = set(), set()
    for name in np.unique(names):
        own = np.flatnonzero(names == name).tolist()
        wanted_first |= {(own[0], other) for other in own[1:]}
        wanted_near |= {(own[a], own[b]) for b in range(len(own)) for a in range(max(1, b - window), b)}
    assert first == wanted_first
    assert near == {(a, b) for a, b in wanted_near if roots[a] != roots[b]}


@pytest.mark.parametrize("part_bytes", [2**20, 1000])
def test_parts_hold_every_row_once_in_ranges_of_the_first_column(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(disk_arrays, "PART_BYTES", part_bytes)
    monkeypatch.setattr(disk_arrays, "BUFFER_BYTES", 3000)
    rows = RNG.integers(0, 2**64, (1000, 2), dtype=np.uint64)
    rows[:, 1] = np.arange(1000)
    rows[:2, 0] = 0, 2**64 - 1
    pieces = np.split(rows, [300, 301, 900])
    table = written(tmp_path, [np.column_stack([own[:, 0], own[:, 1] - own[0, 1]]) for own in pieces], 2)
    assert len(table.files) > 4
    chunks = [chunk for part in range(3) for chunk in table.chunks(part, 3)]
    assert max(map(len, chunks)) * 16 <= 2 * part_bytes
    assert all(a[:, 0].max() < b[:, 0].min() for a, b in pairwise(chunks))
    for found in (np.concatenate(chunks), np.concatenate([*table.every()])):
        assert np.array_equal(found[np.lexsort(found.T)], rows[np.lexsort(rows.T)])
    assert [len(chunk) > 0 for chunk in Rows((), 2).chunks(0, 1)] == []


def test_rows_are_written_once_where_that_is_asked_for(tmp_path):
    rows = RNG.integers(0, 4, (200, 2)).astype(np.uint64)
    [found] = written(tmp_path, [rows], 2, unique=True).chunks(0, 1)
    assert found.tolist() == np.unique(rows, axis=0).tolist()


def test_lists_are_taken_in_any_order_and_as_often_as_wanted(tmp_path):
    rows = [RNG.integers(0, 256, size) for size in (0, 3, 1, 0, 0, 7, 2, 0)]
    with ListWriter(tmp_path / "lists", np.uint8) as writer:
        for some in (rows[:3], rows[3:]):
            writer.add(np.concatenate(some), np.array([len(row) for row in some]))
    lists = Lists.mapped(tmp_path / "lists", np.uint8)
    wanted = np.array([7, 5, 5, 0, 1, 6, 2])
    values, lengths = lists.take(wanted)
    assert lengths.tolist() == lists.lengths(wanted).tolist() == [len(rows[k]) for k in wanted]
    assert values.tolist() == np.concatenate([rows[k] for k in wanted]).tolist()


def test_lists_may_all_be_empty(tmp_path):
    with ListWriter(tmp_path / "lists", np.uint64) as writer:
        writer.add(np.empty(0, np.uint64), np.zeros(3, np.int64))
    values, lengths = Lists.mapped(tmp_path / "lists", np.uint64).take(np.array([2, 0]))
    assert (values.tolist(), lengths.tolist()) == ([], [0, 0])
