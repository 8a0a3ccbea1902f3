"""Runs of a second through the command line's own entry, for tests that compare what they log."""

import csv
from pathlib import Path

import yaml

from pipeline.cli import main

BATCH = 512


def architecture(family: str, **options) -> dict:
    return {"class_path": family, "init_args": {"vocab_size": 512, "width": 32, **options}}


GPT = architecture("TransformerConfig", context=32, layers=2, heads=2)
LSTM = architecture("LSTMConfig", layers=2)


def write_config(path: Path, tokens: Path, architecture: dict, **overrides) -> Path:
    """A configuration of ten steps; overrides are named section__key."""
    config = {
        "trainer": {"default_root_dir": str(path.parent / "run"), "log_every_n_steps": 1, "enable_progress_bar": False},
        "model": {"architecture": architecture, "optimizer": {"learning_rate": 3e-3}},
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 8, "total_tokens": 10 * BATCH,
            "validate_every_tokens": 10 * BATCH, "validation_tokens": 2000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    for key, value in overrides.items():
        section, name = key.split("__")
        config.setdefault(section, {})[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def losses(config: Path, *arguments: str) -> list[float]:
    """Train, and return the training losses of metrics.csv."""
    assert main(["fit", "--config", str(config), *arguments]) == 0
    with (config.parent / "run" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
