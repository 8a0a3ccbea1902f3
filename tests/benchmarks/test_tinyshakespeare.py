"""tinyshakespeare by characters in nanoGPT's configuration for CPUs: our loss and time beside its own, whole processes in turn.

It wants a checkout of github.com/karpathy/nanoGPT, named by the environment variable NANOGPT, and the text, named by
TINYSHAKESPEARE (plain or gzipped).
"""

import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.benchmark

STEPS, CONTEXT, BATCH = 1200, 64, 12
"""Of nanoGPT's 2,000 steps as many as our learning rate needs for its loss."""
THEIR_LOSS = 1.886


@pytest.fixture
def text() -> str:
    path = Path(os.environ.get("TINYSHAKESPEARE", ""))
    if not path.is_file():
        pytest.skip("set TINYSHAKESPEARE to the text to train on")
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt").read()


def train_nanogpt(folder: Path, text: str) -> tuple[float, float]:
    """Its last validation loss (on 20 random batches) and the seconds of its process."""
    source = Path(os.environ.get("NANOGPT", ""))
    if not (source / "train.py").is_file():
        pytest.skip("set NANOGPT to a checkout of github.com/karpathy/nanoGPT to compare with it")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git"))
    symbols = sorted(set(text))
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    ids = np.array([numbers[symbol] for symbol in text], dtype=np.uint16)
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True, exist_ok=True)
    cut = int(len(text) * 0.9)
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(symbols), "itos": symbols, "stoi": numbers}))
    # As its README has it for a computer without a GPU.
    command = (
        "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
        "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
    )
    began = time.perf_counter()
    output = subprocess.run(
        [sys.executable, *command.split()], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    seconds = time.perf_counter() - began
    return float(re.findall(r"val loss ([\d.]+)", output)[-1]), seconds


def prepare(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    cut = int(len(text) * 0.9)
    sources = {}
    for split, part in (("train", text[:cut]), ("validation", text[cut:])):
        (folder / f"{split}.txt").write_text(part)
        sources[split] = {"class_path": "Text", "init_args": {"files": [str(folder / f"{split}.txt")], "split": split}}
    recipe = {
        "output": str(folder / "data"), "sources": sources, "split": {"validation": 0.0, "test": 0.0},
        "tokenizer": {"vocab_size": 257},
    }  # fmt: skip
    (folder / "data.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run(
        [sys.executable, "-m", "data_prep", "run", "--config", str(folder / "data.yaml")],
        check=True,
        capture_output=True,
    )


def train_ours(folder: Path, *options: str) -> tuple[float, float]:
    """The loss of the whole validation split in nats per character, and the seconds of the process."""
    config = {
        "trainer": {"default_root_dir": str(folder / "run"), "log_every_n_steps": 100, "enable_progress_bar": False},
        "model": {
            "architecture": {
                "class_path": "TransformerConfig",
                "init_args": {"vocab_size": 257, "context": CONTEXT, "layers": 4, "width": 128, "heads": 4},
            },
            "optimizer": {"learning_rate": 5e-3, "beta2": 0.99},
            "schedule": {"warmup_tokens": 100 * BATCH * CONTEXT},
        },
        "data": {
            "path": str(folder / "data" / "tokens"), "context": CONTEXT, "batch_tokens": BATCH * CONTEXT, "micro_batch": BATCH,
            "total_tokens": STEPS * BATCH * CONTEXT,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipeline", "fit", "--config", str(folder / "fit.yaml"), *options]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    found = json.loads((folder / "run" / "validation.json").read_text())
    assert found["step"] == STEPS
    return found["loss"] * found["tokens"] / found["bytes"], seconds


def test_nanogpts_loss_in_half_of_its_time(text, tmp_path, capsys):
    prepare(tmp_path / "ours", text)
    their_loss, their_seconds = train_nanogpt(tmp_path / "theirs", text)
    loss, seconds = train_ours(tmp_path / "ours")
    with capsys.disabled():
        print(
            f"\nnanoGPT {their_loss:.3f}, ours {loss:.3f} nats per character; {seconds / their_seconds:.2f} of its time"
        )
    assert loss <= THEIR_LOSS
    assert seconds <= 0.5 * their_seconds
