"""What a run leaves on disk: whole checkpoints, a metrics file without repeats, and models that load without a Trainer."""

import csv
import resource
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_prep.files import InputError
from pipeline import schedule
from pipeline.callbacks import metrics_log
from pipeline.checkpoint import build_model, describe_model, find_checkpoint, open_state
from pipeline.metrics import bits_per_byte, perplexity
from pipeline.models.recurrent import LSTMConfig
from pipeline.state_files import write_file
from pipeline.step_records import read_rows
from pipeline.tracking import CSVLog, Wandb


def test_a_continued_log_repeats_no_step_and_keeps_every_column(tmp_path):
    log = CSVLog(tmp_path)
    log.continue_from(0)
    for step in range(1, 6):
        log.log_metrics({"train/loss": step / 10}, step)
    log.log_metrics({"val/loss": 0.5}, 5)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,0.")  # cut short by a kill

    again = CSVLog(tmp_path)
    again.continue_from(3)
    again.log_metrics({"train/loss": 0.4, "train/new": 1.0}, 4)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[-1] == {"step": "4", "train/loss": "0.4", "val/loss": "", "train/new": "1.0"}


def test_large_counts_are_logged_exactly(tmp_path):
    log = CSVLog(tmp_path)
    log.continue_from(0)
    log.log_metrics({"tokens": 300_000_000_001}, 1)
    with (tmp_path / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["tokens"] == "300000000001"


def test_a_disk_that_takes_no_more_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_file(path, {"pipeline": {"step": 1}, "state_dict": {}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="last.ckpt"):
            write_file(path, {"pipeline": {"step": 2}, "weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_state(path).record["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_description_builds_the_same_model():
    config = LSTMConfig(vocab_size=30, layers=1, width=8)
    assert build_model(describe_model(config)).config == config


def test_a_missing_checkpoint_is_named_with_those_that_are_there(tmp_path):
    with pytest.raises(InputError, match="no run directory"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match=r"no checkpoint 'best' \(there: last\)"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path, "last") == tmp_path / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_refused_with_a_sentence(content, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        open_state(path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="not written by this project"):
        open_state(tmp_path / "other.ckpt")


def test_the_learning_rate_is_the_papers_schedule():
    # Brown et al. 2020, appendix B: warm-up over 375M tokens, cosine to 10 % over 260B tokens, then held to 300B.
    gpt3 = schedule.CosineSchedule(warmup_tokens=375_000_000, decay_tokens=260_000_000_000)
    points = {0: 0.0, 187_500_000: 0.5, 375_000_000: 1.0, 130_187_500_000: 0.55, 260_000_000_000: 0.1, 299 * 10**9: 0.1}
    for tokens, fraction in points.items():
        assert gpt3.multiplier(tokens, 300_000_000_000) == pytest.approx(fraction)
    rates = [gpt3.multiplier(tokens, 300 * 10**9) for tokens in range(375_000_000, 260 * 10**9, 10**9)]
    assert rates == sorted(rates, reverse=True)


def test_bits_per_byte_and_perplexity_of_a_uniform_guess():
    # 8 equally likely tokens of 2 bytes each: 3 bits a token, 1.5 bits a byte.
    nats = 100 * 2.0794415416798357
    assert bits_per_byte(nats, 200) == pytest.approx(1.5)
    assert perplexity(nats / 100) == pytest.approx(8)
    assert perplexity(1e6) == float("inf")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "x" * 40}, "online"), ({"WANDB_MODE": "disabled"}, "disabled")],
)
def test_wandb_is_offline_without_an_account_and_never_asks(environment, mode, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Wandb().resolved_mode() == mode
    assert Wandb(mode="disabled").resolved_mode() == "disabled"


def test_the_clock_counts_training_and_waiting_for_data_but_not_saving(monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics_log.time, "perf_counter", lambda: now)
    clock, task = metrics_log.MetricsLog(), SimpleNamespace(step_ended=False)
    trainer: Any = SimpleNamespace(train_dataloader=SimpleNamespace(waited=0.0))
    clock.loader_waited = 0.0

    def batch(begin: float, end: float) -> None:
        nonlocal now
        now = begin
        clock.on_train_batch_start(trainer, task, None, 0)
        now = end
        clock.on_train_batch_end(None, task, None, None, 0)

    batch(1, 3)
    clock.on_save_checkpoint(None, task, {})
    batch(10, 11)
    assert clock.seconds == 3
    batch(13, 14)  # two seconds passed until the loader had the batch
    assert clock.seconds == 6
