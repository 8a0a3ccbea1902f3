"""The order of a huge corpus starts as fast as that of a small one, holds nothing in memory, and passes for random."""

import time
import tracemalloc
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from data_prep.shards import Manifest, Shard
from pipeline.data import MixturePart, TokenDataModule
from pipeline.order import SampleOrder

CONTEXT = 1024
MILLION, TEN_BILLION = 10**6, 10**10


class Synthetic:
    """As many tokens as the shards claim, none of them anywhere."""

    def __init__(self, shards: tuple[Shard, ...]):
        self.length = sum(shard.tokens for shard in shards)

    def __len__(self) -> int:
        return self.length

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return starts[:, None] + np.arange(length)


@pytest.fixture(autouse=True)
def synthetic(monkeypatch):
    monkeypatch.setattr(Manifest, "open", lambda self, split: Synthetic(self.splits[split]))
    monkeypatch.setattr(Manifest, "verify", lambda self, split: None)


@pytest.fixture
def corpora(tmp_path) -> dict[int, str]:
    """Folders with the manifest alone of two sources with so many samples together."""
    folders = {}
    for samples in (MILLION, TEN_BILLION):
        shards = [Shard(f"train/{s}", s, 1, samples * CONTEXT // 2 + 1, 0, {"bin": s}) for s in ("web", "books")]
        held_out = Shard("validation/web", "web", 1, 2**31, 0, {"bin": "validation"})
        folder = tmp_path / str(samples)
        folder.mkdir()
        Manifest(folder, "uint16", 512, 0, "tokenizer", [], {"train": tuple(shards), "validation": (held_out,)}).save()
        folders[samples] = str(folder)
    return folders


def start(folder: str) -> None:
    """All that happens before the first step of a run that reads the corpus once, and its first batch."""
    data = TokenDataModule(
        folder, CONTEXT, 64 * CONTEXT, 64, total_epochs=1,
        mixture={"web": MixturePart(weight=0.7), "books": MixturePart(weight=0.3)},
    )  # fmt: skip
    loop = SimpleNamespace(max_steps=-1)
    data.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        global_rank=0, world_size=1, global_step=0, fit_loop=SimpleNamespace(epoch_loop=loop)
    )
    data.setup("fit")
    assert loop.max_steps == data.steps == data.samples.epoch // 64
    assert next(data.train_dataloader().batches(0))[0].tokens_BT.shape == (64, CONTEXT)


def test_a_huge_corpus_takes_no_more_memory_than_a_small_one(corpora):
    peaks = {}
    for samples, folder in corpora.items():
        start(folder)
        tracemalloc.start()
        start(folder)
        peaks[samples] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[TEN_BILLION] < 1.2 * peaks[MILLION]
    assert peaks[TEN_BILLION] < 4 * 64 * (CONTEXT + 1) * 8  # a few copies of the first batch


@pytest.mark.benchmark
def test_a_huge_corpus_starts_as_fast_as_a_small_one(corpora):
    seconds: dict[int, list[float]] = {MILLION: [], TEN_BILLION: []}
    for _ in range(15):
        for samples, folder in corpora.items():
            begin = time.perf_counter()
            start(folder)
            seconds[samples].append(time.perf_counter() - begin)
    small, large = (min(times) * 1e3 for times in seconds.values())
    print(f"start-up and first batch: {small:.2f} ms at 10^6 samples, {large:.2f} ms at 10^10 ({large / small:.2f} x)")
    assert large < 2 * small


def chosen(order: SampleOrder, count: int = 20_000, epoch: int = 0) -> np.ndarray:
    """The first samples of an epoch as fractions of the corpus."""
    begin = epoch * order.samples
    return order.windows(np.arange(begin, begin + count)) / order.samples


def independence(one: np.ndarray, other: np.ndarray, cells: int = 12) -> float:
    """Chi-squared p-value that two series of fractions fall on a grid evenly."""
    return float(stats.chisquare(np.histogram2d(one, other, cells, [[0, 1], [0, 1]])[0].ravel()).pvalue)


@pytest.mark.parametrize("samples", [MILLION, 1_048_577, TEN_BILLION])
def test_the_order_is_uniform_and_its_neighbours_epochs_and_seeds_are_independent(samples):
    order = SampleOrder("corpus", 0, samples)
    first = chosen(order)
    assert stats.chisquare(np.histogram(first, 100, (0, 1))[0]).pvalue > 1e-4
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    for lag in (1, 2, 7, 1000):
        assert independence(first[:-lag], first[lag:]) > 1e-4
        assert abs(np.corrcoef(first[:-lag], first[lag:])[0, 1]) < 4 / np.sqrt(len(first) - lag)
    assert independence(first, chosen(order, epoch=1)) > 1e-4
    assert independence(first, chosen(SampleOrder("corpus", 1, samples))) > 1e-4
    assert independence(first, chosen(SampleOrder("another", 0, samples))) > 1e-4


def test_places_in_a_whole_epoch_are_as_a_random_permutations():
    # Of a random permutation, samples that stay in place and neighbours that stay neighbours are each Poisson with mean 1.
    orders = [SampleOrder("corpus", seed, 1000).windows(np.arange(1000)) for seed in range(400)]
    for counts in (
        [(order == np.arange(1000)).sum() for order in orders],
        [(np.diff(order) == 1).sum() for order in orders],
        [(one == other).sum() for one, other in pairwise(orders)],
    ):
        seen = np.bincount(np.minimum(counts, 4), minlength=5)
        expected = stats.poisson.pmf(np.arange(4), 1)
        assert stats.chisquare(seen, len(counts) * np.append(expected, 1 - expected.sum())).pvalue > 1e-4


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_every_permutation_of_a_few_samples_is_equally_likely(samples):
    # 4800 seeds, one order of at most 24 each.
    orders = [tuple(SampleOrder("corpus", seed, samples).windows(np.arange(samples)).tolist()) for seed in range(4800)]
    counts = [orders.count(order) for order in permutations(range(samples))]
    assert sum(counts) == 4800
    assert stats.chisquare(counts).pvalue > 1e-4


def test_every_size_up_to_130_is_a_bijection_in_every_epoch():
    for samples in range(1, 131):
        windows = SampleOrder("corpus", samples, samples).windows(np.arange(3 * samples)).reshape(3, samples)
        assert (np.sort(windows) == np.arange(samples)).all()
