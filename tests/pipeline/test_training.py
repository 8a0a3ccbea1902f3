"""Training through the command line's own entry, in this process: exactness, resuming, refusing, overfitting."""

import csv
import os
import signal
from pathlib import Path

import pytest
import yaml
from lightning import Callback

from pipeline.cli import main
from pipeline.training_cli import TrainingCLI

STEPS, BATCH = 50, 512
GPT = {
    "class_path": "TransformerConfig",
    "init_args": {"vocab_size": 512, "context": 32, "layers": 2, "width": 32, "heads": 2, "dropout": 0.1},
}
LSTM = {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 2, "width": 32, "dropout": 0.1}}


def write_config(path: Path, tokens: Path, architecture: dict, **overrides) -> Path:
    config = {
        "trainer": {"default_root_dir": str(path.parent / "run"), "log_every_n_steps": 1, "enable_progress_bar": False},
        "model": {
            "architecture": architecture,
            "optimizer": {"learning_rate": 3e-3},
            "schedule": {"warmup_tokens": 4 * BATCH},
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 8,
            "total_tokens": STEPS * BATCH, "validate_every_tokens": 20 * BATCH, "validation_tokens": 2000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    for key, value in overrides.items():
        section, name = key.split("__")
        config[section][name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, *arguments: str) -> list[dict[str, str]]:
    """Train, and return the rows of metrics.csv."""
    assert main(["fit", "--config", str(config), *arguments]) == 0
    return rows(config.parent / "run")


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def exact(logged: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """What must be the same, to the last digit, however a run was cut into pieces."""
    names = ("step", "tokens", "train/loss", "train/grad_norm", "train/learning_rate", "val/loss", "val/bits_per_byte")
    return [tuple(row[name] for name in names) for row in logged]


class SignalAfter(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def stop_at(config: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingCLI.instantiate_trainer

    def with_signal(self, **kwargs):
        trainer = original(self, **kwargs)
        trainer.callbacks.insert(0, SignalAfter(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCLI, "instantiate_trainer", with_signal)
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "--config", str(config)])
    assert stopped.value.code == 128 + signal.SIGINT


@pytest.mark.parametrize("architecture", [GPT, LSTM], ids=["gpt", "lstm"])
@pytest.mark.parametrize("micro_batch", [16, 4], ids=["whole", "accumulated"])
def test_a_run_stopped_at_25_and_resumed_repeats_the_50_losses(
    architecture, micro_batch, tokens_folder, tmp_path, monkeypatch
):
    options = {"data__micro_batch": micro_batch}
    whole = fit(write_config(tmp_path / "whole" / "c.yaml", tokens_folder, architecture, **options))
    again = fit(write_config(tmp_path / "again" / "c.yaml", tokens_folder, architecture, **options))
    assert exact(again) == exact(whole)

    config = write_config(tmp_path / "stopped" / "c.yaml", tokens_folder, architecture, **options)
    stop_at(config, 25, monkeypatch)
    stopped = rows(tmp_path / "stopped" / "run")
    assert 25 <= int(stopped[-1]["step"]) < 28
    resumed = fit(config, "--ckpt_path", "last")
    assert exact(resumed) == exact(whole)
    assert [row["step"] for row in resumed if row["train/loss"]] == [str(k) for k in range(1, STEPS + 1)]
