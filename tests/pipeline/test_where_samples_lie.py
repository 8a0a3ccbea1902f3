"""Which tokens a sample reads, and which samples read a token: one is the other's inverse, checked by brute force."""

import numpy as np
import pytest
from counting_tokens import Counting

from pipeline.batch import Pairs, Samples, Streams, Windows
from pipeline.models.base import NO_TOKEN
from pipeline.order import SampleOrder, invert, permute, round_keys


class Couples:
    """Pairs whose source begins with the number of the pair; every seventh is too long for a context of 7."""

    def __init__(self, count: int):
        self.lengths = np.stack([np.arange(count) % 7 + 2, np.arange(count) % 5 + 2], axis=1)

    def pair_lengths(self) -> np.ndarray:
        return self.lengths

    def gather_pairs(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.full(self.lengths[k, 0], k), np.full(self.lengths[k, 1], k)) for k in indices.tolist()]


SAMPLES = {
    "windows": Windows(Counting(8 * 50 + 3), "corpus", 0, context=8, sequences=4),
    "one window": Windows(Counting(9), "corpus", 0, context=8, sequences=4),
    "streams": Streams(Counting(4 * 50 + 3), context=8, sequences=4),
    "pairs": Pairs(Couples(90), "corpus", 0, context=7, sequences=4, start=0),
    "few pairs": Pairs(Couples(6), "corpus", 0, context=9, sequences=4, start=0),
}


def read(samples: Samples, position: int) -> set[int]:
    """The tokens (or the pair) that stand in the batch of a position."""
    batch = samples.batch(np.array([position]))
    tokens = [batch.source_BS] if batch.source_BS is not None else [batch.tokens_BT, batch.targets_BT]
    return {token for part in tokens for token in part.unique().tolist()} - {NO_TOKEN}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_span_is_what_the_batch_reads(kind):
    samples = SAMPLES[kind]
    for position in range(2 * samples.epoch + 5):
        ((part, start, length),) = samples.spans(np.array([position]))
        assert part == 0
        assert set(range(start, start + length)) == read(samples, position)
    together = np.arange(2 * samples.epoch + 5)
    assert samples.spans(together) == [samples.spans(together[k : k + 1])[0] for k in together]


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("epochs", [0, 0.3, 2.6])
def test_the_positions_of_a_token_are_all_the_samples_that_read_it(kind, epochs):
    samples = SAMPLES[kind]
    below = int(epochs * samples.epoch)
    spans = samples.spans(np.arange(below))
    for start, stop in [(0, 1), (7, 8), (8, 9), (8, 10), (40, 90), (49, 51), (195, 200), (0, 1000), (399, 403)]:
        expected = [
            k for k, (_, begin, size) in enumerate(spans) if begin < stop and start < begin + size and start < stop
        ]
        assert samples.positions(start, stop, below) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000, 10**10])
def test_invert_undoes_permute(size):
    keys = round_keys("some order")
    indices = np.unique(np.linspace(0, size - 1, 500, dtype=np.int64))
    assert np.array_equal(invert(permute(indices, size, keys), size, keys), indices)
    assert np.array_equal(permute(invert(indices, size, keys), size, keys), indices)


def test_positions_at_ten_billion_samples_are_found_at_once():
    order = SampleOrder("corpus", 0, 10**10)
    positions = order.positions(np.array([0, 123_456_789, 10**10 - 1]), below=3 * 10**10)
    assert len(positions) == 9
    assert set(order.windows(positions).tolist()) == {0, 123_456_789, 10**10 - 1}
