"""Ctrl-C and termination: a signal only sets a flag; at the next end of a step all ranks agree, save together and stop."""

import signal
from typing import Any

from lightning import Callback, Trainer

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.task import LanguageModelling

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop(Callback):
    """Saves `last` at the end of the step in which a signal came, then exits with 128 + the signal's number.

    A second Ctrl-C stops at once, without saving.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.received: signal.Signals | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        # Not earlier: Lightning puts its own handler of SIGTERM, which would end the run without saving, before this.
        self.previous = {number: signal.signal(number, self.note) for number in SIGNALS}

    def teardown(self, trainer: Trainer, pl_module: LanguageModelling, stage: str) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        if pl_module.step_ended and not pl_module.validation_follows():
            self.stop_if_asked(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if trainer.state.fn == "fit" and trainer.global_step < trainer.max_steps:
            self.stop_if_asked(trainer, pl_module)

    def stop_if_asked(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        path = self.checkpoints.save_last(trainer, pl_module, wait=True)
        name = self.received.name if self.received else "a signal to another rank"
        if trainer.is_global_zero:
            print(
                f"\nStopped by {name} after step {trainer.global_step} of {trainer.max_steps}; saved {path}. "
                "The same command with --ckpt_path last goes on with the next sample.",
                flush=True,
            )
        raise SystemExit(128 + (self.received or signal.SIGTERM))
