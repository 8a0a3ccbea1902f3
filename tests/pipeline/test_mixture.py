"""A mixture has its shares in every window, sample for sample, and is the same function of the position at any size."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.batch import MixedWindows
from pipeline.batch_schedule import BatchRamp, BatchSchedule
from pipeline.mixture import LONGEST, Mixture, whole_weights

WEIGHTS = [[1], [1, 1], [3, 2], [60, 22, 8, 8, 3], [1, 1, 1, 1, 1, 1, 1], [97, 1, 1, 1], [5, 3, 2, 2, 1, 1]]


class Numbered:
    """Tokens that say where they stand, each part of the corpus in a range of its own."""

    def __init__(self, length: int, first: int = 0):
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        assert starts.min() >= 0
        assert starts.max() + length <= self.length
        return self.first + starts[:, None] + np.arange(length)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_window_of_samples_has_each_source_by_its_weight(weights):
    sources, _ = Mixture(weights).split(np.arange(3 * sum(weights) + 5))
    total, shares = sum(weights), np.array(weights)
    counts = np.concatenate(
        [[np.zeros(len(weights), int)], np.cumsum(np.eye(len(weights), dtype=int)[sources], axis=0)]
    )
    for length in range(1, len(sources) + 1):
        windows = counts[length:] - counts[:-length]
        assert (np.abs(windows * total - length * shares) < 2 * total).all()
    # From the start on, each count is its share rounded down or up.
    lengths = np.arange(len(counts))[:, None] * shares
    assert (counts >= lengths // total).all()
    assert (counts <= -(-lengths // total)).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_source_is_read_in_its_own_order_without_a_gap(weights):
    mixture = Mixture(weights)
    sources, numbers = mixture.split(np.arange(3 * sum(weights) + 2))
    for source in range(len(weights)):
        assert numbers[sources == source].tolist() == list(range((sources == source).sum()))
        assert (
            mixture.positions(source, numbers[sources == source]).tolist() == np.flatnonzero(sources == source).tolist()
        )
    for below in (0, 1, sum(weights), len(sources) - 1):
        assert mixture.counts(below).tolist() == np.bincount(sources[:below], minlength=len(weights)).tolist()


def test_a_mixture_of_random_weights_keeps_its_bound():
    random = np.random.default_rng(0)
    for _ in range(50):
        weights = random.integers(1, 400, random.integers(2, 12))
        sources, _ = Mixture(weights.tolist()).split(np.arange(weights.sum()))
        counts = np.cumsum(np.eye(len(weights), dtype=int)[sources], axis=0)
        ahead = counts * weights.sum() - np.arange(1, weights.sum() + 1)[:, None] * weights
        assert (np.abs(ahead) < weights.sum()).all()


def test_positions_beyond_ten_billion_are_exact():
    mixture, start = Mixture([60, 22, 8, 8, 3]), 101 * 10**10
    sources, numbers = mixture.split(np.arange(start, start + 101))
    first, place = mixture.split(np.arange(101))
    assert sources.tolist() == first.tolist()
    assert (numbers - place).tolist() == (mixture.weights[first] * 10**10).tolist()
    assert mixture.positions(4, numbers[sources == 4]).tolist() == (start + np.flatnonzero(sources == 4)).tolist()
    assert mixture.counts(start).tolist() == [weight * 10**10 for weight in (60, 22, 8, 8, 3)]


def test_weights_become_whole_numbers_of_the_same_proportion():
    assert whole_weights({"a": 0.6, "b": 0.4}) == {"a": 3, "b": 2}
    assert whole_weights({"a": 60, "b": 22, "c": 8, "d": 8, "e": 3}) == {"a": 60, "b": 22, "c": 8, "d": 8, "e": 3}
    assert whole_weights({"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 1, "b": 2, "c": 7}
    rounded = whole_weights({"a": np.pi, "b": np.e, "c": 0.001})
    assert sum(rounded.values()) == LONGEST
    for name, weight in (("a", np.pi), ("b", np.e), ("c", 0.001)):
        assert abs(rounded[name] - LONGEST * weight / (np.pi + np.e + 0.001)) < 1
    for weights, words in [({"a": 1, "b": 0}, "b is 0"), ({"a": -1}, "above 0"), ({"a": float("nan")}, "above 0")]:
        with pytest.raises(ValueError, match=words):
            whole_weights(weights)
    with pytest.raises(ValueError, match="at least 1 in"):
        whole_weights({"a": 1, "b": 1.3e-7})


def mixed(contexts: dict[int, int] | None = None, ramp: BatchRamp | None = None, seed: int = 0) -> MixedWindows:
    parts = [(Numbered(8 * 40 + 1), "one"), (Numbered(8 * 30 + 5, 1000), "two"), (Numbered(8 * 5 + 1, 2000), "three")]
    batches = BatchSchedule(128, 8, contexts=contexts, ramp=ramp)
    return MixedWindows(parts, Mixture([5, 3, 2]), seed, batches)


def parts_of(tokens: np.ndarray) -> list[int]:
    return (tokens // 1000).tolist()


def test_every_part_is_read_without_replacement_within_its_own_epoch():
    samples = mixed()
    firsts = samples.batch(np.arange(400)).tokens_BT[:, 0].numpy()
    assert np.bincount(parts_of(firsts)).tolist() == [200, 120, 80]
    for part, windows in ((0, 40), (1, 30), (2, 5)):
        read = [token for token in firsts.tolist() if token // 1000 == part]
        epochs = [read[start : start + windows] for start in range(0, len(read) - windows + 1, windows)]
        assert all(len(set(epoch)) == windows for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))
    assert samples.epochs(400) == [200 / 40, 120 / 30, 80 / 5]
    assert samples.epoch == 75


def test_a_mixed_batch_is_the_same_samples_alone_and_together():
    samples = mixed()
    together = samples.batch(np.arange(32))
    for position in range(32):
        alone = samples.batch(np.array([position]))
        assert alone.tokens_BT[0].tolist() == together.tokens_BT[position].tolist()
        assert alone.targets_BT[0].tolist() == (together.tokens_BT[position] + 1).tolist()
    assert together.valid_tokens == 128
    assert (mixed(seed=1).batch(np.arange(32)).tokens_BT != together.tokens_BT).any()


@pytest.mark.parametrize("contexts", [None, {0: 2, 500: 8, 1200: 4}])
def test_spans_and_positions_of_a_mixture_are_each_others_inverse(contexts):
    samples = mixed(contexts, BatchRamp(start_tokens=32, over_tokens=700))
    below = samples.batches.position_at(20)
    spans = [samples.spans(np.array([position]))[0] for position in range(below)]
    assert spans == samples.spans(np.arange(below))
    for position, (part, start, length) in enumerate(spans):
        batch = samples.batch(np.array([position]))
        assert batch.tokens_BT[0].tolist() == list(range(part * 1000 + start, part * 1000 + start + length - 1))
        assert batch.targets_BT[0, -1] == part * 1000 + start + length - 1
    for part in range(3):
        for begin, end in [(0, 1), (3, 9), (16, 17), (30, 41)]:
            expected = [k for k, (p, s, n) in enumerate(spans) if p == part and s < end and begin < s + n]
            assert samples.positions(begin, end, below, part) == expected
    epochs = np.zeros(3)
    for part, _, length in spans:
        epochs[part] += 1 / ((len(samples.parts[part]) - 1) // (length - 1))
    assert samples.epochs(below) == pytest.approx(epochs.tolist())
