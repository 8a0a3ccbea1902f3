"""The order of samples is a permutation and looks random; batches divide it among ranks without a gap or a repeat."""

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.batch import IGNORED, EvaluationLoader, TrainingLoader
from pipeline.order import SampleOrder


class Counting:
    """Tokens 0, 1, 2, ...: a token says where it stands."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        assert starts.max() + length <= self.length
        return starts[:, None] + np.arange(length)


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 64, 1000, 4097])
def test_an_epoch_holds_every_sample_once(samples):
    order = SampleOrder("corpus", 0, samples)
    for epoch in range(3):
        windows = order.windows(np.arange(epoch * samples, (epoch + 1) * samples))
        assert sorted(windows) == list(range(samples))


def test_sample_k_is_the_same_alone_and_in_any_company():
    order = SampleOrder("corpus", 7, 1000)
    together = order.windows(np.arange(2500))
    assert [int(order.windows(np.array([k]))[0]) for k in (0, 999, 1000, 2499)] == together[
        [0, 999, 1000, 2499]
    ].tolist()


def test_corpus_seed_and_epoch_each_make_another_order():
    first = SampleOrder("corpus", 0, 1000).windows(np.arange(1000))
    others = [
        SampleOrder("other", 0, 1000).windows(np.arange(1000)),
        SampleOrder("corpus", 1, 1000).windows(np.arange(1000)),
        SampleOrder("corpus", 0, 1000).windows(np.arange(1000, 2000)),
    ]
    for other in others:
        assert (first == other).mean() < 0.01


def test_the_order_is_uniform_and_neighbours_are_unrelated():
    # Over many seeds each sample lands everywhere equally often (chi-squared), and successive samples do not correlate.
    size, seeds = 50, 2000
    orders = np.stack([SampleOrder("corpus", seed, size).windows(np.arange(size)) for seed in range(seeds)])
    for position in (0, 1, size - 1):
        counts = np.bincount(orders[:, position], minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-4
    large = SampleOrder("corpus", 0, 100_000).windows(np.arange(100_000))
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), large)[0, 1]) < 0.02


def test_ten_billion_samples_need_no_table():
    order = SampleOrder("corpus", 0, 10**10)
    windows = order.windows(np.arange(10**10 - 500, 10**10 + 500))
    assert len(np.unique(windows[:500])) == 500
    assert windows.min() >= 0
    assert windows.max() < 10**10


def loader(ranks: int, rank: int, micro_batch: int, consumed: int = 0) -> TrainingLoader:
    result = TrainingLoader(
        Counting(8 * 100 + 1), SampleOrder("corpus", 0, 100), context=8, steps=30, sequences=16,
        micro_batch=micro_batch, rank=rank, ranks=ranks,
    )  # fmt: skip
    result.load_state_dict({"consumed": consumed})
    return result


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 16), (1, 4), (2, 4), (4, 2)])
def test_ranks_and_micro_batches_only_divide_the_global_batch(ranks, micro_batch):
    per_rank = [list(loader(ranks, rank, micro_batch)) for rank in range(ranks)]
    assert [len(batches) for batches in per_rank] == [len(loader(ranks, 0, micro_batch))] * ranks
    accumulation = 16 // (ranks * micro_batch)
    for step in range(30):
        pieces = [b.samples_B for batches in per_rank for b in batches[step * accumulation : (step + 1) * accumulation]]
        assert sorted(torch.cat(pieces).tolist()) == list(range(step * 16, step * 16 + 16))


def test_another_number_of_ranks_goes_on_at_the_same_sample():
    one = loader(1, 0, 8)
    seen = []
    for batch in one:
        seen.append(batch.samples_B)
        if len(seen) == 10:
            break
    consumed = one.state_dict()["consumed"]
    rest = [b.samples_B for rank in range(2) for b in loader(2, rank, 4, consumed)]
    assert sorted(torch.cat(seen + rest).tolist()) == list(range(30 * 16))


def test_targets_are_the_next_tokens():
    batch = next(iter(loader(1, 0, 4)))
    assert torch.equal(batch.targets_BT, batch.tokens_BT + 1)
    assert batch.valid_tokens == 16 * 8


@pytest.mark.parametrize("length", [2, 9, 10, 65, 100])
@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_predicts_every_token_but_the_first_once(length, ranks):
    loaders = [EvaluationLoader(Counting(length), context=8, micro_batch=2, rank=r, ranks=ranks) for r in range(ranks)]
    batches = [batch for each in loaders for batch in each]
    targets = torch.cat([b.targets_BT[b.targets_BT != IGNORED] for b in batches])
    assert sorted(targets.tolist()) == list(range(1, length))
    assert len({len(each) for each in loaders}) == 1
    assert all(b.valid_tokens == length - 1 for b in batches)
