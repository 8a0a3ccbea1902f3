"""Lightning's training loop counts micro-batches; this one counts optimizer steps, as the loader marks their ends."""

from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from pipeline.task import LanguageModelling, StepWithdrawn


class StepCallback(Callback):
    """A callback with one hook more than Lightning's."""

    def on_step_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        """A step has ended, and so have the validation and the saves that belong to it; the next batch is not asked for yet."""


class StepOrNot(_AutomaticOptimization):
    """Computes a step, or passes over one that the task leaves out; both count."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        task: LanguageModelling = self.trainer.lightning_module  # pyright: ignore[reportAssignmentType]
        if not task.passed_over:
            return super().run(*args, **kwargs)
        if task.step_ended:
            self.optim_progress.optimizer.step.increment_ready()
            self.optim_progress.optimizer.step.increment_completed()
        return {}


class StepLoop(_TrainingEpochLoop):
    """Steps and validates where the task says, so that global batches may be of any number of micro-batches, and that number may
    change in the middle of a run."""

    def __init__(self, trainer: Trainer, **limits: Any):
        super().__init__(trainer, **limits)
        self.automatic_optimization = StepOrNot(trainer)

    @property
    def task(self) -> LanguageModelling:
        return self.trainer.lightning_module  # pyright: ignore[reportReturnType]

    def _accumulated_batches_reached(self) -> bool:
        return self.task.step_ended

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        return self._should_check_val_epoch() and self.task.step_ended and self.task.validation_follows()

    def _broadcast_sigterm_tensor(self) -> None:
        """Signals are agreed upon once a step, not at every micro-batch."""

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting and self.task.validation_due:
            # Nothing is trained: `on_advance_end` validates, from the first batch on.
            self.task.validation_due = False
            self.val_loop.restarting = False
            return
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        super().on_advance_end(data_fetcher)
        if self.task.step_ended:
            for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
                if isinstance(callback, StepCallback):
                    callback.on_step_end(self.trainer, self.task)


class RunLoop(_FitLoop):
    """Lightning's outer loop, which also goes on where all steps are done and the last validation is not, and can go back."""

    def run(self) -> None:
        while True:
            try:
                return super().run()
            except StepWithdrawn as withdrawn:
                answer = withdrawn.answer
            # Out of the handler, which would keep the frames of the step, and with them its loader, alive.
            answer()

    def go_back(self, path: Any) -> None:
        """Load a checkpoint into what is there, as a process that goes on from it would; every rank calls it, out of `run`."""
        if self._data_fetcher is not None:
            self._data_fetcher.teardown()
        self._data_fetcher = self._combined_loader = None
        self.trainer._checkpoint_connector.restore(path)

    @property
    def done(self) -> bool:
        due = self.restarting and self.trainer.lightning_module.validation_due
        return super().done and not due


def count_steps(trainer: Trainer) -> None:
    """Give a Trainer these loops in place of its own."""
    old = trainer.fit_loop
    steps = StepLoop(trainer, min_steps=old.epoch_loop.min_steps, max_steps=old.epoch_loop.max_steps)
    trainer.fit_loop = RunLoop(trainer, min_epochs=old.min_epochs, max_epochs=old.max_epochs)
    trainer.fit_loop.epoch_loop = steps
