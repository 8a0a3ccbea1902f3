"""Callbacks with which a job does itself harm at a chosen moment; its processes import them by PYTHONPATH."""

import os
import signal
import time
from pathlib import Path

from lightning import Callback


class Slowly(Callback):
    """Every step takes so long at least, on one rank perhaps longer than on the others.

    Args:
        seconds: by rank; the last holds for all further ones.
    """

    def __init__(self, seconds: list[float]):
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch.ends_step:
            time.sleep(self.seconds[min(trainer.global_rank, len(self.seconds) - 1)])


class SignalItself(Callback):
    """Sends its own process a signal, once in the life of the run.

    Args:
        number: USR1, KILL...
        step: in which, counted from 1.
        when: in training, in the validation after that step, or while its checkpoint is being saved.
        rank: on which rank.
        always: at this step of every attempt, rather than once.
    """

    def __init__(self, number: str, step: int, when: str = "training", rank: int = 0, always: bool = False):
        self.number, self.step, self.when, self.rank, self.always = number, step, when, rank, always

    def strike(self, trainer, when: str, step: int) -> None:
        if (when, step, trainer.global_rank) != (self.when, self.step, self.rank):
            return
        mark = Path(trainer.default_root_dir) / f"struck-{self.number}-{self.when}-{self.step}"
        if mark.exists() and not self.always:
            return
        mark.touch()
        os.kill(os.getpid(), getattr(signal, f"SIG{self.number}"))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.strike(trainer, "training", trainer.global_step + 1)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self.strike(trainer, "validation", trainer.global_step)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.strike(trainer, "saving", trainer.global_step)
