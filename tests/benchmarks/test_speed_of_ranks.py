"""What two ranks cost beyond their arithmetic: each does what one did alone, so all that the step takes longer is the price of the two."""

import csv
import os
import statistics
from pathlib import Path

import pytest
from distributed.session import fit_command, run_commands

pytestmark = pytest.mark.benchmark

MODEL = {"vocab_size": 512, "context": 256, "layers": 6, "width": 384, "heads": 6}
STEPS, SEQUENCES = 12, 16
LIMIT = {"ddp": 1.15, "zero2": 1.25}
"""Its own step and the gathering of weights after it are not hidden behind a backward pass, so ZeRO may cost more."""


def tokens_per_second(folder: Path, tokens: Path, strategy: str, ranks: int) -> float:
    """The median over the steps after the first few, at `SEQUENCES` sequences a rank."""
    batch = SEQUENCES * MODEL["context"] * ranks
    config = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "devices": ranks, "strategy": strategy, "log_every_n_steps": 1,
            "enable_progress_bar": False, "limit_val_batches": 0,
        },
        "model": {"architecture": {"class_path": "TransformerConfig", "init_args": MODEL}},
        "data": {
            "path": str(tokens), "context": MODEL["context"], "batch_tokens": batch, "micro_batch": SEQUENCES,
            "total_tokens": STEPS * batch,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    run_commands([fit_command(folder, config)], ranks, timeout=600)
    with (folder / "metrics.csv").open() as file:
        rates = [
            float(row["train/tokens_per_second"]) for row in csv.DictReader(file) if row["train/tokens_per_second"]
        ]
    return statistics.median(rates[4:])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores")
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_ranks_on_two_cores_cost_little_more_than_their_arithmetic(strategy, tokens_folder, tmp_path):
    alone = [tokens_per_second(tmp_path / f"one-{k}", tokens_folder, "single", 1) for k in range(2)]
    both = [tokens_per_second(tmp_path / f"two-{k}", tokens_folder, strategy, 2) for k in range(2)]
    ratio = 2 * max(alone) / max(both)
    print(f"\n{strategy}: two ranks take {ratio:.2f} of what the arithmetic of one rank, done by each, demands")
    assert ratio <= LIMIT[strategy]
