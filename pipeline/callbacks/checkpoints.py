"""When a run saves: `last` at every validation, every so many tokens and at a stop; `best` when validation improves."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from data_prep.files import atomic_path
from pipeline.task import LanguageModelling


class Checkpoints(Checkpoint):
    """Keeps checkpoints/last.ckpt and checkpoints/best.ckpt (lowest validation loss) in the run directory.

    Args:
        every_tokens: Tokens between two saves of `last`, beside the one at each validation.
    """

    def __init__(self, every_tokens: int | None = None):
        if every_tokens is not None and every_tokens < 1:
            raise ValueError(f"checkpoint.every_tokens is {every_tokens}: it must be at least 1, or null")
        self.every_tokens = every_tokens
        self.best_loss = math.inf
        self.saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if trainer.is_global_zero:
            for leftover in self.folder(trainer).glob(".*.partial"):
                leftover.unlink()  # of a save that a kill cut short

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        # Where a validation follows, the save waits for it: a resumed run would not make it up.
        if not pl_module.step_ended or pl_module.validation_follows():
            return
        if pl_module.data.due(trainer.global_step, self.every_tokens):
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        improved = pl_module.evaluation["loss"] < self.best_loss
        if improved:
            self.best_loss = pl_module.evaluation["loss"]
        last = self.save_last(trainer)
        if improved and trainer.is_global_zero:
            best = last.with_name("best.ckpt")
            with atomic_path(best) as temporary:
                try:
                    # A link takes no time and no space: a checkpoint is replaced, never changed.
                    os.link(last, temporary)
                except OSError:
                    shutil.copyfile(last, temporary)  # a file system without hard links

    def save_last(self, trainer: Trainer) -> Path:
        """Write last.ckpt; every rank calls it. Saving the same step twice writes once."""
        path = self.folder(trainer) / "last.ckpt"
        if self.saved_step != trainer.global_step:
            trainer.save_checkpoint(path, weights_only=False)
            self.saved_step = trainer.global_step
        return path
