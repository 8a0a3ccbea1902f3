"""Callbacks that spoil steps of a run under test, for a configuration to name."""

from collections.abc import Sequence

import torch
from lightning import Callback


class Poison(Callback):
    """Multiplies what the output head reads in the given steps (counted from 1), on one rank or on all: loss and gradient follow."""

    def __init__(self, steps: Sequence[int], factor: float = float("nan"), rank: int | None = None):
        self.steps, self.factor, self.rank, self.now, self.hook = set(steps), factor, rank, False, None

    def on_train_start(self, trainer, pl_module):
        self.hook = self.hook or pl_module.model.head.register_forward_pre_hook(self.spoil)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        chosen = self.rank in (None, trainer.global_rank)
        self.now = chosen and trainer.global_step + 1 in self.steps

    def spoil(self, module, inputs):
        # The same operation in every step, so that sums are taken in the same order.
        read, *others = inputs
        return read * torch.tensor(self.factor if self.now and module.training else 1.0, dtype=read.dtype), *others


class PowerCut(Exception):
    """The end of a process that has no time to save."""


class CutAt(Callback):
    """Ends the run before a step, once the run has gone back."""

    def __init__(self, step: int, starts: int):
        self.step, self.starts = step, starts

    def on_train_start(self, trainer, pl_module):
        self.starts -= 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.step and self.starts <= 0:
            raise PowerCut
