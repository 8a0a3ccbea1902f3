"""Batches made ahead are the batches made in turn; what was only made is not counted; and waiting for data shows in the log."""

import csv
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.batch import Batch, MixedWindows, Pairs, Samples, Streams, Windows
from pipeline.batch_schedule import BatchSchedule
from pipeline.cli import main
from pipeline.loader import TrainingLoader
from pipeline.order import BLOCK, SampleOrder

STEPS, SEQUENCES = 25, 16


class Counting:
    """Tokens 0, 1, 2, ...: a token says where it stands."""

    def __len__(self) -> int:
        return 8 * 100 + 1

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return starts[:, None] + np.arange(length)


class Couples:
    """Pairs of up to seven and five tokens."""

    def pair_lengths(self) -> np.ndarray:
        return np.array([[k % 7 + 1, k % 5 + 1] for k in range(150)])

    def gather_pairs(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.full(k % 7 + 1, k), np.full(k % 5 + 1, k)) for k in indices.tolist()]


class Watched:
    """Samples that count how many batches were made of them; one may take its time, or fail."""

    epoch, mean_tokens, batches = 1000, 1.0, BatchSchedule(4, 1)

    def __init__(self, seconds: float = 0.0, fails_at: int | None = None):
        self.seconds, self.fails_at, self.made = seconds, fails_at, 0

    def batch(self, positions: np.ndarray) -> Batch:
        if self.made == self.fails_at:
            raise OSError(f"no tokens at {positions[0]}")
        time.sleep(self.seconds)
        self.made += 1
        tokens = torch.from_numpy(positions)[:, None]
        return Batch(tokens, tokens, tokens[:, 0], 4)

    spans = positions = None


KINDS = {
    "windows": lambda: Windows(Counting(), "corpus", 0, context=8, sequences=SEQUENCES),
    "streams": lambda: Streams(Counting(), context=8, sequences=SEQUENCES),
    "pairs": lambda: Pairs(Couples(), "corpus", 0, context=8, sequences=SEQUENCES, start=0),
}


def loader(samples: Samples | Watched, prefetch: int, steps: int = STEPS, micro_batch: int = 4) -> TrainingLoader:
    return TrainingLoader(samples, steps=steps, micro_batch=micro_batch, rank=0, ranks=1, prefetch=prefetch)  # pyright: ignore


def same(one: list[Batch], other: list[Batch]) -> bool:
    def equal(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return len(one) == len(other) and all(map(lambda a, b: all(map(equal, a, b)), one, other))


OTHERS: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _others():
    """Threads of loaders that tests before have left behind, in what is held of an exception, say."""
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


def threads() -> list[str]:
    """Those that make batches for this test."""
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch") and thread not in OTHERS
    ]


@pytest.mark.parametrize("prefetch", [1, 2, 7, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_made_ahead_are_the_same_in_the_same_order(kind, prefetch):
    assert same(list(loader(KINDS[kind](), prefetch)), list(loader(KINDS[kind](), 0)))


@pytest.mark.parametrize("stop", [1, 7, 24])
def test_a_run_goes_on_after_the_batch_that_was_handed_out_last_not_after_the_one_made_last(stop):
    samples = Watched()
    first = loader(samples, prefetch=3)
    batches = iter(first)
    seen = list(islice(batches, stop))
    while samples.made < min(stop + 3, STEPS):
        time.sleep(0.001)
    assert first.state_dict() == {"consumed": 4 * stop}
    second = loader(Watched(), prefetch=3)
    second.load_state_dict(first.state_dict())
    assert same(seen + list(second), list(loader(Watched(), 0)))


@pytest.mark.parametrize("prefetch", [1, 4])
def test_no_more_is_made_than_was_asked_for(prefetch):
    samples = Watched()
    batches = iter(loader(samples, prefetch, steps=100))
    for handed_out in range(1, 20):
        next(batches)
        while samples.made < handed_out + prefetch:
            time.sleep(0.001)
        time.sleep(0.002)
        assert samples.made == handed_out + prefetch
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_an_error_is_raised_where_its_batch_would_have_come(prefetch):
    batches = iter(loader(Watched(fails_at=9), prefetch))
    assert [int(batch.samples_B[0]) for batch in islice(batches, 9)] == [4 * k for k in range(9)]
    with pytest.raises(OSError, match="no tokens at 36"):
        next(batches)
    assert not threads()


def test_the_thread_ends_with_the_loop():
    batches = iter(loader(Watched(), 2))
    list(batches)
    assert not threads()
    batches = iter(loader(Watched(), 2))
    next(batches)
    assert len(threads()) == 1
    del batches
    assert not threads()


def test_without_prefetch_there_is_no_thread():
    batches = iter(loader(Watched(), 0))
    next(batches)
    assert not threads()


def test_the_time_that_training_waits_for_data_is_counted():
    slow = loader(Watched(seconds=0.01), 0, steps=10)
    for _ in slow:
        time.sleep(0.03)  # The model's own time does not count.
    assert 0.1 <= slow.waited < 0.3
    ahead = loader(Watched(seconds=0.01), 2, steps=10)
    for _ in ahead:
        time.sleep(0.03)
    assert 0.01 <= ahead.waited < slow.waited / 2  # Training waits for the first alone.


def test_an_order_asked_in_pieces_is_that_of_the_whole():
    # Micro-batches are looked up in blocks; some stand across two of them, or across an epoch's end.
    for samples in (7, 900, BLOCK - 1, BLOCK, 3 * BLOCK + 5):
        order = SampleOrder("corpus", 3, samples)
        whole = order.windows(np.arange(2 * BLOCK + 100))
        for length in (1, 3, 64, 1000):
            starts = range(BLOCK - 2 * length, BLOCK + 2 * length, length) if length < 1000 else (0, 5, BLOCK - 500)
            for start in starts:
                assert np.array_equal(order.windows(np.arange(start, start + length)), whole[start : start + length])


@pytest.fixture
def config(tmp_path: Path, tokens_folder: Path) -> Path:
    file = tmp_path / "run.yaml"
    content = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "log_every_n_steps": 5, "enable_progress_bar": False},
        "model": {"architecture": {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 1, "width": 8}}},
        "data": {"path": str(tokens_folder), "context": 8, "batch_tokens": 64, "micro_batch": 8, "total_tokens": 20 * 64},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    return file


def waits(config: Path, *arguments: str) -> list[float]:
    assert main(["fit", "--config", str(config), *arguments]) == 0
    with (config.parent / "run" / "metrics.csv").open() as file:
        return [float(row["train/data_wait"]) for row in csv.DictReader(file) if row.get("train/data_wait")]


def test_a_stalled_disk_is_seen_in_the_log(config, monkeypatch):
    batch = MixedWindows.batch

    def stalled(self: MixedWindows, positions: np.ndarray) -> Batch:
        time.sleep(0.05)
        return batch(self, positions)

    monkeypatch.setattr(MixedWindows, "batch", stalled)
    stalled_waits = waits(config)
    assert len(stalled_waits) == 4
    assert max(stalled_waits) <= 1
    assert max(stalled_waits[1:]) > 0.5  # The first row has what a first step costs.
    assert not threads()


def test_a_disk_that_keeps_up_is_not(config):
    assert min(waits(config)) < 0.3
    assert not threads()


def test_a_negative_prefetch_is_refused_by_name(config, capsys):
    assert main(["fit", "--config", str(config), "--data.prefetch=-1"]) == 2
    assert "data.prefetch is -1: it must be at least 0" in capsys.readouterr().err
