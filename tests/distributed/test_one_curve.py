"""One curve: every strategy at every number of ranks has the losses of one process in plain PyTorch, which is written out here."""

import csv
import math
from collections.abc import Container
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.session import fit_command, run_commands
from torch.nn import functional as F

from data_prep.shards import Manifest
from pipeline.models.transformer import TransformerConfig
from pipeline.order import SampleOrder

CONTEXT, SEQUENCES = 32, 16
BATCH = CONTEXT * SEQUENCES
MODEL = {"vocab_size": 512, "context": CONTEXT, "layers": 2, "width": 32, "heads": 4}
PEAK, WARMUP_STEPS, CLIP = 3e-3, 10, 0.5


def plain_pytorch(tokens: Path, steps: int, left_out: Container[int] = ()) -> dict[str, list[float]]:
    """GPT-3's recipe in a loop: its loss, gradient norms and learning rate at every step; nothing is learned in steps left out."""
    manifest = Manifest.load(tokens)
    reader = manifest.open("train")
    order = SampleOrder(manifest.fingerprint, 0, (len(reader) - 1) // CONTEXT)
    torch.manual_seed(0)
    model = TransformerConfig(**MODEL).build()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-8)
    curve: dict[str, list[float]] = {
        "train/loss": [],
        "train/grad_norm": [],
        "train/grad_norm_clipped": [],
        "train/learning_rate": [],
    }
    for step in range(steps):
        windows = order.windows(np.arange(step * SEQUENCES, (step + 1) * SEQUENCES))
        rows = torch.stack([torch.from_numpy(reader.read(int(w) * CONTEXT, CONTEXT + 1)) for w in windows])
        logits, _ = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        after = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        done = step + 1
        progress = (done - WARMUP_STEPS) / (steps - WARMUP_STEPS)
        rate = done / WARMUP_STEPS if done < WARMUP_STEPS else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate
        if done not in left_out:
            optimizer.step()
        for name, value in zip(curve, (loss, norm, after, PEAK * rate), strict=True):
            curve[name].append(float(value))
    return curve


def command(
    folder: Path, tokens: Path, steps: int, *, strategy: str, ranks: int, micro_batch: int, precision: str = "32-true"
) -> list[str]:
    config = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "devices": ranks, "strategy": strategy, "precision": precision,
            "log_every_n_steps": 1, "enable_progress_bar": False, "gradient_clip_val": CLIP,
        },
        "model": {
            "architecture": {"class_path": "TransformerConfig", "init_args": MODEL},
            "optimizer": {"learning_rate": PEAK},
            "schedule": {"warmup_tokens": WARMUP_STEPS * BATCH},
        },
        "data": {
            "path": str(tokens), "context": CONTEXT, "batch_tokens": BATCH, "micro_batch": micro_batch, "total_tokens": steps * BATCH,
            "validation_tokens": 2000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    return fit_command(folder, config)


def curve_of(folder: Path) -> dict[str, list[float]]:
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    names = ("train/loss", "train/grad_norm", "train/grad_norm_clipped", "train/learning_rate")
    return {name: [float(row[name]) for row in rows] for name in names}


def worst(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs)
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


# Ranks -> the layouts to run on them: strategy, sequences of a micro-batch (with 16 in a batch, the rest is accumulated).
LAYOUTS = {
    1: [("single", 16), ("single", 2), ("ddp", 4), ("zero1", 4), ("zero2", 4), ("zero3", 4)],
    2: [("ddp", 8), ("ddp", 2), ("zero1", 8), ("zero1", 2), ("zero2", 8), ("zero2", 2), ("zero3", 8), ("zero3", 2)],
    4: [("ddp", 4), ("ddp", 1), ("zero1", 2), ("zero2", 2), ("zero3", 2)],
}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_strategy_trains_as_plain_pytorch_on_one_process(ranks, request, tokens_folder, tmp_path):
    """100 steps on the slow path; the quick one has two ranks, DDP and ZeRO's stages once each."""
    slow = "slow" in request.config.option.markexpr and "not slow" not in request.config.option.markexpr
    steps, layouts = (100, LAYOUTS[ranks]) if slow else (25, [(s, m) for s, m in LAYOUTS[ranks] if m == 2])
    expected = plain_pytorch(tokens_folder, steps)
    names = [f"{strategy}-{micro_batch}" for strategy, micro_batch in layouts]
    run_commands(
        [
            command(tmp_path / name, tokens_folder, steps, strategy=strategy, ranks=ranks, micro_batch=micro_batch)
            for name, (strategy, micro_batch) in zip(names, layouts, strict=True)
        ],
        ranks,
    )
    for name in names:
        curve = curve_of(tmp_path / name)
        assert worst(curve["train/loss"], expected["train/loss"]) < 1e-5, name
        # Norms of the clipped gradient are all but equal to the threshold; those before clipping feel the order of sums.
        assert worst(curve["train/grad_norm"], expected["train/grad_norm"]) < 1e-3, name
        assert worst(curve["train/grad_norm_clipped"], expected["train/grad_norm_clipped"]) < 1e-3, name
        assert worst(curve["train/learning_rate"], expected["train/learning_rate"]) < 1e-12, name
