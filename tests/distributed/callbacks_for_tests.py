"""Callbacks that a configuration under test can name."""

import json
import time
from pathlib import Path

from gradients_by_hand import ByHand
from lightning import Callback


class NoiseByHand(ByHand):
    """Leaves by_hand.json: the noise scale from the first two micro-batches of every step."""

    def on_train_end(self, trainer, pl_module):
        Path(trainer.default_root_dir, "by_hand.json").write_text(json.dumps(self.noise_scales(parts=2)))


class SlowRank(Callback):
    """Rank 1 comes late to every backward pass."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_rank == 1:
            time.sleep(self.seconds)
