"""Lightning's training loop counts micro-batches; this one counts optimizer steps, as the loader marks their ends."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from pipeline.task import LanguageModelling


class StepLoop(_TrainingEpochLoop):
    """Steps and validates where the task says, so that global batches may be of any number of micro-batches, and that number may
    change in the middle of a run."""

    @property
    def task(self) -> LanguageModelling:
        return self.trainer.lightning_module  # pyright: ignore[reportReturnType]

    def _accumulated_batches_reached(self) -> bool:
        return self.task.step_ended

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        return self._should_check_val_epoch() and self.task.step_ended and self.task.validation_follows()


def count_steps(trainer: Trainer) -> None:
    """Give a Trainer this loop in place of its own."""
    old = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, min_steps=old.min_steps, max_steps=old.max_steps)
