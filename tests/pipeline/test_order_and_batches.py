"""The order of samples is a permutation and looks random; batches divide it among ranks without a gap or a repeat."""

import numpy as np
import pytest
import torch
from counting_tokens import Counting
from scipy import stats

from pipeline.batch import Pairs, Samples, Streams, Windows
from pipeline.loader import PairEvaluation, StreamEvaluation, TrainingLoader, WindowEvaluation
from pipeline.models.base import NO_TOKEN
from pipeline.order import LengthOrder, SampleOrder


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


def test_the_order_never_changes_under_a_run_that_goes_on():
    # Written down when checkpoints with this order existed: another permutation would repeat samples in their runs.
    positions = np.array([0, 1, 2, 3, 999, 1000, 10**9])
    expected = [821, 909, 86, 65, 261, 466, 739]
    assert SampleOrder("corpus", 0, 1000).windows(positions).tolist() == expected
    samples = Windows(Counting(8 * 1000 + 1), "corpus", 0, context=8, sequences=16)
    assert [int(samples.batch(positions[k : k + 1]).tokens_BT[0, 0]) // 8 for k in range(7)] == expected


def test_ten_billion_samples_need_no_table():
    order = SampleOrder("corpus", 0, 10**10)
    windows = order.windows(np.arange(10**10 - 500, 10**10 + 500))
    assert len(np.unique(windows[:500])) == 500
    assert windows.min() >= 0
    assert windows.max() < 10**10


class Couples:
    """Pair k: a source of k % 7 + 1 tokens k, a target of k % 5 + 1 tokens 100 + k, and end-of-text (0) after each."""

    def __init__(self, count: int):
        self.count = count

    def pair_lengths(self) -> np.ndarray:
        return np.array([[k % 7 + 2, k % 5 + 2] for k in range(self.count)], np.int32)

    def gather_pairs(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.array([k] * (k % 7 + 1) + [0]), np.array([100 + k] * (k % 5 + 1) + [0])) for k in indices.tolist()]


def windows() -> Samples:
    return Windows(Counting(8 * 100 + 1), "corpus", 0, context=8, sequences=16)


def streams() -> Samples:
    return Streams(Counting(16 * 50 + 9), context=8, sequences=16)


def pairs() -> Samples:
    return Pairs(Couples(150), "corpus", 0, context=8, sequences=16, start=0)


def loader(ranks: int, rank: int, micro_batch: int, consumed: int = 0, samples=windows) -> TrainingLoader:
    result = TrainingLoader(samples(), steps=30, micro_batch=micro_batch, rank=rank, ranks=ranks)
    result.load_state_dict({"consumed": consumed})
    return result


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 16), (1, 4), (2, 4), (4, 2)])
@pytest.mark.parametrize("samples", [windows, streams, pairs])
def test_ranks_and_micro_batches_only_divide_the_global_batch(samples, ranks, micro_batch):
    per_rank = [list(loader(ranks, rank, micro_batch, samples=samples)) for rank in range(ranks)]
    whole = list(loader(1, 0, 16, samples=samples))
    assert [len(batches) for batches in per_rank] == [len(loader(ranks, 0, micro_batch))] * ranks
    accumulation = 16 // (ranks * micro_batch)
    for step in range(30):
        parts = [b for batches in per_rank for b in batches[step * accumulation : (step + 1) * accumulation]]
        assert sorted(torch.cat([b.samples_B for b in parts]).tolist()) == list(range(step * 16, step * 16 + 16))
        valid = [b.targets_BT[b.targets_BT != NO_TOKEN] for b in (*parts, whole[step])]
        assert sorted(torch.cat(valid[:-1]).tolist()) == sorted(valid[-1].tolist())
        assert {b.valid_tokens for b in parts} == {len(valid[-1])}


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


def test_a_stream_row_is_one_contiguous_part_and_starts_over_with_the_epoch():
    # 16 rows of (16 x 50 + 9) // 16 = 50 tokens: (50 - 1) // 8 = 6 steps an epoch.
    batches = list(loader(1, 0, 16, samples=streams))
    for row in (0, 7, 15):
        read = torch.cat([b.tokens_BT[row] for b in batches[:6]])
        assert read.tolist() == list(range(50 * row, 50 * row + 48))
        assert batches[6].tokens_BT[row, 0] == 50 * row
    assert [b.continues for b in batches[:8]] == [False, True, True, True, True, True, False, True]
    assert torch.equal(batches[3].targets_BT, batches[3].tokens_BT + 1)


def test_an_epoch_of_pairs_holds_each_that_fits_once_and_batches_pairs_of_like_length():
    samples = Pairs(Couples(16 * 64), "corpus", 0, context=8, sequences=16, start=0)
    assert samples.left_out == 0
    batches = list(TrainingLoader(samples, steps=64, micro_batch=16, rank=0, ranks=1))
    firsts = torch.cat([b.source_BS[:, 0] for b in batches])
    assert sorted(firsts.tolist()) == list(range(16 * 64))
    padding = np.mean([float((b.source_BS == NO_TOKEN).float().mean()) for b in batches])
    assert padding < 0.2  # of 0.375 if lengths from 2 to 8 were mixed
    assert firsts.tolist() != sorted(firsts.tolist())
    assert samples.mean_tokens == np.mean([k % 5 + 2 for k in range(16 * 64)])


def test_pairs_longer_than_the_context_are_left_out():
    samples = Pairs(Couples(70), "corpus", 0, context=5, sequences=2, start=0)
    kept = [k for k in range(70) if k % 7 + 2 <= 5 and k % 5 + 2 <= 5]
    assert samples.kept.tolist() == kept
    assert samples.left_out == 70 - len(kept)


def test_a_decoder_reads_the_target_one_step_late():
    samples = Pairs(Couples(9), "corpus", 0, context=9, sequences=9, start=0)
    batch = samples.batch(np.arange(9))
    row = batch.source_BS[:, 0].tolist().index(8)  # 8 8 0 -> 108 108 108 108 0
    assert batch.source_BS[row, :4].tolist() == [8, 8, 0, NO_TOKEN]
    assert batch.tokens_BT[row].tolist() == [0, 108, 108, 108, 108, 0][: batch.tokens_BT.shape[1]]
    assert batch.targets_BT[row, :5].tolist() == [108, 108, 108, 108, 0]


def test_a_labelled_text_has_its_class_as_the_only_target_at_its_end():
    labels = [[100 + k] * (k % 5 + 1) for k in range(9)]
    samples = Pairs(Couples(9), "corpus", 0, context=9, sequences=9, start=0, labels=labels)
    batch = samples.batch(np.arange(9))
    assert batch.valid_tokens == 9
    for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
        k = int(tokens[0])
        assert targets[k % 7 + 1] == k
        assert (targets != NO_TOKEN).sum() == 1
    with pytest.raises(ValueError, match="none of data.labels"):
        Pairs(Couples(9), "corpus", 0, context=9, sequences=9, start=0, labels=labels[:-1]).batch(np.arange(9))


def test_batches_by_length_are_a_permutation_of_the_shuffled_order():
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    order = LengthOrder(SampleOrder("corpus", 0, 1000), sequences=10, pool=5)
    steps = [order.samples(step, lengths) for step in range(100)]
    assert sorted(np.concatenate(steps)) == list(range(1000))
    pool = order.shuffled.windows(np.arange(50))
    assert sorted(np.concatenate(steps[:5])) == sorted(pool)
    assert np.mean([np.ptp(lengths[samples]) for samples in steps]) < 15
    shortest = [lengths[samples].min() for samples in steps[:5]]
    assert shortest != sorted(shortest)


@pytest.mark.parametrize("length", [2, 9, 10, 65, 100])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("kind", ["windows", "stream"])
def test_evaluation_predicts_every_token_but_the_first_once(kind, length, ranks):
    def part(rank: int):
        if kind == "stream":
            return StreamEvaluation(Counting(length), chunk=8, rank=rank, ranks=ranks)
        return WindowEvaluation(Counting(length), context=8, micro_batch=2, rank=rank, ranks=ranks)

    loaders = [part(rank) for rank in range(ranks)]
    batches = [batch for each in loaders for batch in each]
    targets = torch.cat([b.targets_BT[b.targets_BT != NO_TOKEN] for b in batches])
    assert sorted(targets.tolist()) == list(range(1, length))
    assert len({len(each) for each in loaders}) == 1
    assert all(b.valid_tokens == length - 1 for b in batches)
    assert [b.continues for b in loaders[0]] == [kind == "stream" and k > 0 for k in range(len(loaders[0]))]


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_reads_every_pair_once(ranks):
    loaders = [
        PairEvaluation(Couples(10), context=20, micro_batch=2, rank=r, ranks=ranks, start=0) for r in range(ranks)
    ]
    targets = torch.cat([b.targets_BT[b.targets_BT != NO_TOKEN] for each in loaders for b in each])
    expected = [t for _, target in Couples(10).gather_pairs(np.arange(10)) for t in target.tolist()]
    assert sorted(targets.tolist()) == sorted(expected)
    assert len({len(each) for each in loaders}) == 1
    assert loaders[0].targets == len(expected)


def test_evaluation_cuts_what_is_too_long():
    batch = PairEvaluation(Couples(7), context=3, micro_batch=7, rank=0, ranks=1, start=0).batch(0)
    assert batch.source_BS[6].tolist() == [6, 6, 0]
    assert batch.targets_BT[4].tolist() == [104, 104, 104]
