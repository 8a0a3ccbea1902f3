"""Callbacks that a configuration under test can name: they send a signal, or stand still, at a set place of a run."""

import ctypes
import os
import signal
import time
from pathlib import Path

from lightning import Callback

from pipeline import signals
from pipeline.callbacks.graceful_stop import GracefulStop
from pipeline.state_files import FolderWriter


class AtAPlace(Callback):
    """Does something once: when a hook is called at a step, for the n-th time at that step, on one rank or on all.

    Args:
        hook: on_train_batch_start, on_before_backward, on_validation_batch_end, on_save_checkpoint, on_train_start or setup.
        step: optimizer steps done by then.
        times: calls at that step before this one.
        rank: all when not given.
    """

    def __init__(self, hook: str, step: int = 0, times: int = 0, rank: int | None = None):
        self.hook, self.step, self.times, self.rank = hook, step, times, rank

    def act(self, trainer) -> None: ...

    def called(self, hook: str, trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step and self.rank in (None, trainer.global_rank):
            self.times -= 1
            if self.times == -1:
                self.act(trainer)

    def setup(self, trainer, pl_module, stage):
        self.called("setup", trainer)

    def on_train_start(self, trainer, pl_module):
        self.called("on_train_start", trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.called("on_train_batch_start", trainer)

    def on_before_backward(self, trainer, pl_module, loss):
        self.called("on_before_backward", trainer)

    def on_validation_batch_end(self, trainer, pl_module, *args):
        self.called("on_validation_batch_end", trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.called("on_save_checkpoint", trainer)


class Sends(AtAPlace):
    """Sends this process signals, one after the other, and goes on when the first of them was noted."""

    def __init__(self, numbers: list[int], hook: str, step: int = 0, times: int = 0, rank: int | None = None):
        super().__init__(hook, step, times, rank)
        self.numbers = numbers

    def act(self, trainer):
        for number in self.numbers:
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 10
            while signals.HELD.received is None and time.monotonic() < deadline:
                time.sleep(0.001)


class StandsStill(AtAPlace):
    """Stops: in a sleep, in a call of C that keeps the interpreter to itself, or as a process (SIGSTOP)."""

    def __init__(self, how: str, hook: str, step: int = 0, times: int = 0, rank: int | None = None):
        super().__init__(hook, step, times, rank)
        self.how = how

    def act(self, trainer):
        if self.how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.how == "held":
            ctypes.PyDLL(None).sleep(600)
        else:
            time.sleep(600)


class SlowBatches(Callback):
    """On one rank, or on all, every batch of a validation takes this long."""

    def __init__(self, seconds: float, rank: int | None = None):
        self.seconds, self.rank = seconds, rank

    def on_validation_batch_start(self, trainer, *args):
        if self.rank in (None, trainer.global_rank):
            time.sleep(self.seconds)


class SlowSteps(SlowBatches):
    """And every micro-batch of training; `wall_time.limit_seconds` counts from the start of training, however long that took."""

    def on_train_batch_start(self, trainer, *args):
        self.on_validation_batch_start(trainer)

    def on_train_start(self, trainer, pl_module):
        stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
        stop.forecast.began = time.time()
        run = Path(trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        (run / "training-began").write_text(str(stop.forecast.began))


class SlowWrites(Callback):
    """On one rank, a checkpoint grows by a byte now and then for this long before it is written."""

    def __init__(self, seconds: float, rank: int):
        self.seconds, self.rank = seconds, rank

    def on_fit_start(self, trainer, pl_module):
        if trainer.global_rank != self.rank:
            return
        write, seconds = FolderWriter.write, self.seconds

        def slowly(writer, *args, **kwargs):
            path = writer.partial / f"rank-{writer.rank:05d}.safetensors"
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                with path.open("ab") as file:
                    file.write(b"x")
                time.sleep(0.5)
            write(writer, *args, **kwargs)

        FolderWriter.write = slowly
