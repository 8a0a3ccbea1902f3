"""Training as separate processes: killed at random moments, stopped by a signal, and on two ranks."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.step_records import read_rows

pytestmark = pytest.mark.slow

CONFIG = {
    "trainer": {"log_every_n_steps": 1, "enable_progress_bar": False, "precision": "32-true", "accelerator": "cpu"},
    "model": {
        "architecture": {
            "class_path": "TransformerConfig",
            "init_args": {"vocab_size": 512, "context": 64, "layers": 2, "width": 64, "heads": 4, "dropout": 0.1},
        },
        "optimizer": {"learning_rate": 3e-3},
    },
    "data": {
        "context": 64, "batch_tokens": 2048, "micro_batch": 8, "total_tokens": 120 * 2048,
        "validate_every_tokens": 30 * 2048, "validation_tokens": 5000,
    },
    "checkpoint": {"every_tokens": 5 * 2048, "keep_last": 1},
    "wandb": {"mode": "disabled"},
    "ckpt_path": "last",
}  # fmt: skip


class Run:
    """One run directory and the command that brings it to its total."""

    def __init__(self, folder: Path, tokens: Path, *options: str):
        self.folder = folder / "run"
        folder.mkdir()
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(CONFIG))
        self.command = [
            sys.executable, "-m", "pipeline", "fit", "--config", str(config), "--data.path", str(tokens),
            "--trainer.default_root_dir", str(self.folder), *options,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)

    def finish(self) -> list[dict[str, str]]:
        output, _ = self.start().communicate(timeout=300)
        assert b"Traceback" not in output, output.decode()
        return self.rows()

    def rows(self) -> list[dict[str, str]]:
        return read_rows(self.folder / "metrics.csv")


def losses(rows: list[dict[str, str]]) -> list[tuple[str, str, str, str]]:
    return [(row["step"], row["tokens"], row["train/loss"], row["val/loss"]) for row in rows]


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tokens_folder, tmp_path):
    whole = Run(tmp_path / "whole", tokens_folder).finish()
    assert len({row["step"] for row in whole}) == 120

    killed, moments = Run(tmp_path / "killed", tokens_folder), random.Random(0)
    for _ in range(4):
        process, before = killed.start(), len(killed.rows())
        while process.poll() is None and len(killed.rows()) <= before:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert losses(killed.finish()) == losses(whole)
    folder = killed.folder / "checkpoints"
    targets = {(folder / name).resolve().name for name in ("best.ckpt", "last.ckpt")}
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt", *targets}
    assert "step-00000120" in targets


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_exits_with_its_number(number, tokens_folder, tmp_path):
    run = Run(tmp_path / "run", tokens_folder)
    process = run.start()
    while len(run.rows()) < 7:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"Stopped by {number.name} after step" in output.decode()
    assert "Traceback" not in output.decode()
    stopped = int(run.rows()[-1]["step"])
    assert losses(run.finish())[stopped - 1][0] == str(stopped)
    assert len({row["step"] for row in run.rows()}) == 120


# Families beside CONFIG's GPT, each on its kind of data: architecture, fixture of the shards, what else the command says.
FAMILIES = {
    "gpt": ({}, "tokens_folder", []),
    "lstm on streams": (
        {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 2, "width": 64}},
        "tokens_folder", ["--data.order", "stream"],
    ),
    "recurrent seq2seq": (
        {"class_path": "RecurrentSeq2SeqConfig", "init_args": {
            "vocab_size": 512, "layers": 1, "width": 64, "cell": "lstm", "attention": "additive", "bidirectional": True,
        }},
        "pairs_folder", ["--data.order", "pairs"],
    ),
    "transformer seq2seq": (
        {"class_path": "TransformerSeq2SeqConfig", "init_args": {
            "vocab_size": 512, "context": 64, "encoder_layers": 1, "decoder_layers": 1, "width": 64, "heads": 4,
        }},
        "pairs_folder", ["--data.order", "pairs"],
    ),
    "classifier": (
        {"class_path": "ClassifierConfig", "init_args": {
            "vocab_size": 512, "classes": 2, "body": {"class_path": "GRUConfig", "init_args": {"vocab_size": 512, "layers": 1, "width": 64}},
        }},
        "labelled_folder", ["--data.order", "pairs", "--data.labels", "[with, without]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_train_as_one(family, request, tmp_path):
    architecture, folder, of_family = FAMILIES[family]
    tokens = request.getfixturevalue(folder)
    total = str(20 * 2048 if folder == "tokens_folder" else 5000)
    options = ["--data.total_tokens", total, "--model.optimizer.learning_rate", "3e-4", *of_family]
    if architecture:
        (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"architecture": architecture}}))
        options += ["--config", str(tmp_path / "model.yaml")]
    options += ["--model.architecture.dropout", "0"]
    one = Run(tmp_path / "one", tokens, *options, "--data.micro_batch", "16").finish()
    ranks = ["--data.micro_batch", "8", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    two = Run(tmp_path / "two", tokens, *options, *ranks).finish()
    assert len(one) == len(two)
    assert len(one) >= 8
    for a, b in zip(one, two, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss", "val/bits_per_byte"):
            if a.get(name):
                # The order of sums differs; the gradients of few targets feel it first.
                assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-5 if family == "gpt" else 2e-4), (
                    a["step"],
                    name,
                )
