"""Stopping with nothing lost: a signal only sets a flag; at the next boundary all ranks agree, save together and end.

Boundaries are the ends of steps, with the validation and the saves that belong to them, and those of the batches of a validation.
"""

import signal
import sys
from typing import Any

import torch
from lightning import Trainer

from pipeline import exit_codes, run_state, signals
from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.callbacks.wall_time import Forecast, WallTime
from pipeline.step_loop import StepCallback
from pipeline.task import LanguageModelling

GO_ON = "The same command with --ckpt_path last goes on with the next sample."


class GracefulStop(StepCallback):
    """Saves `last` and exits at the first boundary after a signal, with 128 + its number, or when the wall time is nearly up, with
    OUT_OF_TIME.

    A validation that is cut short is made up first when the run goes on. A second Ctrl-C stops at once, without saving; other
    signals that follow the first change nothing.
    """

    def __init__(self, checkpoints: Checkpoints, wall_time: WallTime):
        self.checkpoints, self.signals = checkpoints, signals.HELD
        self.forecast = Forecast(wall_time, self.signals.began)
        self.held: set[signal.Signals] = set()
        self.saved_step: int | None = None
        """The step at which training began: what there is of it is on the disk."""

    # -- from the first moment to the last

    def setup(self, trainer: Trainer, pl_module: LanguageModelling, stage: str) -> None:
        if stage != "fit":
            return
        self.held = self.signals.hold(signals.WARNING, signal.SIGTERM, signal.SIGINT)
        # Lightning's own handler talks to the other ranks from inside the handler.
        trainer._signal_connector.register_signal_handlers = lambda: None
        self.stop_before_training(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.stop_before_training(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.saved_step = trainer.global_step
        self.forecast.begin(trainer, pl_module)
        self.stop_before_training(trainer)

    def stop_before_training(self, trainer: Trainer) -> None:
        code = self.agree(trainer)
        if code:
            sentence = f"Stopped by {self.cause(trainer, code)} before the first step; nothing was trained, nothing is lost. {GO_ON}"
            self.end(trainer, code, sentence, step=None)

    def teardown(self, trainer: Trainer, pl_module: LanguageModelling, stage: str) -> None:
        self.signals.release(self.held)
        self.held = set()

    # -- boundaries

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        if not pl_module.step_ended:
            return
        self.forecast.steps.append(self.forecast.lap())
        if pl_module.validation_follows():
            self.stop_if_asked(trainer, pl_module, self.forecast.validation, validation_due=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.longest_batch = 0.0
        self.began_validation = self.forecast.mark
        self.forecast.lap()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.longest_batch = max(self.longest_batch, self.forecast.lap())
            self.stop_if_asked(trainer, pl_module, self.longest_batch, validation_due=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.forecast.validation = max(self.forecast.validation, self.forecast.mark - self.began_validation)

    def on_step_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if trainer.global_step < trainer.max_steps:
            self.stop_if_asked(trainer, pl_module, self.forecast.next_step)
        self.forecast.lap()

    # -- stopping

    def agree(self, trainer: Trainer, work: float = 0.0) -> int:
        """The exit status with which all ranks end now, or 0: the signal of any of them, or else the first rank's forecast.

        Args:
            work: seconds until the next boundary, as far as is known.
        """
        own = 0
        if self.signals.received is not None:
            own = exit_codes.of_signal(self.signals.received)
        elif self.forecast.falls_short(trainer, work):
            own = exit_codes.OUT_OF_TIME
        code = torch.tensor(own, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(code, reduce_op="max"))

    def cause(self, trainer: Trainer, code: int) -> str:
        if code == exit_codes.OUT_OF_TIME:
            return self.forecast.describe(trainer)
        return signal.Signals(code - exit_codes.of_signal(0)).name

    def stop_if_asked(
        self, trainer: Trainer, pl_module: LanguageModelling, work: float, validation_due: bool = False
    ) -> None:
        code = self.agree(trainer, work)
        if not code:
            return
        step = trainer.global_step
        cause = self.cause(trainer, code)
        if step == self.saved_step and self.checkpoints.saved_step != step:
            # Only a validation that was being made up is lost, and stays due.
            sentence = f"Stopped by {cause} before another step; nothing was trained, nothing is lost. {GO_ON}"
        else:
            pl_module.validation_due = validation_due
            path = self.checkpoints.save_last(trainer, pl_module, wait=True)
            due = " It makes up the validation first." if validation_due else ""
            sentence = f"Stopped by {cause} after step {step} of {trainer.max_steps}; saved {path}. {GO_ON}{due}"
        self.end(trainer, code, sentence, step)

    def end(self, trainer: Trainer, code: int, sentence: str, step: int | None) -> None:
        """Say so and raise SystemExit; the ranks end together, since the first to end may take the others with it."""
        run_state.note_end(
            trainer.default_root_dir, code=code, reason=sentence.partition(". ")[0], step=step, rank=trainer.global_rank
        )
        if trainer.is_global_zero:
            print(f"\n{sentence}", flush=True)
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=code)
        # Lightning kills this process when it sees one that it started end with a status.
        started = getattr(trainer.strategy.launcher, "procs", None)
        if started:
            started.clear()
        trainer.strategy.barrier()
        self.signals.ignore()
        raise SystemExit(code)
