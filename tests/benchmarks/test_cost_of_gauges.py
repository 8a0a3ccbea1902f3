"""What seeing the step costs: the time inside the gauges' hooks, as a share of the training that they look at; `make bench`."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.callbacks.gauges import Gauge, LayerNorms, MemoryByRank
from pipeline.callbacks.noise_scale import NoiseScaleOfTraining
from pipeline.callbacks.step_times import StepTimes
from pipeline.cli import main

pytestmark = pytest.mark.benchmark

STEPS, BATCH, LOG_EVERY = 20, 4096, 10
HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end", "read")


def timed(hook: Callable, spent: dict[str, float]) -> Callable:
    """The same hook, which adds its time to `spent` under the name of its gauge."""

    def wrapper(self: Gauge, *args):
        start = time.perf_counter()
        try:
            return hook(self, *args)
        finally:
            spent[type(self).__name__] += time.perf_counter() - start

    return wrapper


def test_gauges_cost_less_than_a_hundredth_of_training(tokens_folder: Path, tmp_path: Path, capsys):
    torch.set_num_threads(2)
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "log_every_n_steps": LOG_EVERY, "enable_progress_bar": False},
        "model": {
            "architecture": {
                "class_path": "TransformerConfig",
                "init_args": {"vocab_size": 512, "context": 256, "layers": 6, "width": 384, "heads": 6},
            },
            "noise_scale": True,
        },
        "data": {
            "path": str(tokens_folder), "context": 256, "batch_tokens": BATCH, "micro_batch": 8, "total_tokens": STEPS * BATCH,
            "validation_tokens": 1000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    spent: dict[str, float] = defaultdict(float)
    with pytest.MonkeyPatch.context() as patch:
        for gauge in (StepTimes, NoiseScaleOfTraining, LayerNorms, MemoryByRank):
            for name in set(HOOKS) & set(vars(gauge)):
                patch.setattr(gauge, name, timed(vars(gauge)[name], spent))
        assert main(["fit", "--config", str(path)]) == 0
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    seconds = float(lines[-1].split(",")[lines[0].split(",").index("seconds")])
    shares = {name: value / seconds for name, value in spent.items()}
    with capsys.disabled():
        print(
            f"\n{seconds / STEPS:.3f} s a step; of it "
            + ", ".join(f"{name} {share:.4%}" for name, share in shares.items())
        )
    assert set(shares) == {"StepTimes", "NoiseScaleOfTraining", "LayerNorms", "MemoryByRank"}
    assert sum(shares.values()) < 0.01
