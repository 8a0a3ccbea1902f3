"""Blocks in which the model in training is used for something else, and after which training does not notice."""

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn


@contextlib.contextmanager
def precision_of(trainer: Trainer, device: torch.device) -> Iterator[None]:
    """The precision of a validation's forward pass."""
    # DeepSpeed's engine turns autocast on in its own forward alone.
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=str(trainer.precision) == "bf16-mixed")
    with trainer.precision_plugin.forward_context(), mixed:
        yield


@contextlib.contextmanager
def undisturbed(model: nn.Module, compiled: bool) -> Iterator[None]:
    """A block that may use the model, and after which random numbers and the modes of its modules are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    # Other shapes than training's would have training's graphs compiled anew, for any shape.
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with isolate_rng(), eager:
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


class Quiet(io.TextIOBase):
    """Standard error without what one thread writes: the harness's progress bars, which have no other switch."""

    def __init__(self, stream: Any):
        self.stream, self.thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def quiet_thread() -> Iterator[None]:
    with contextlib.redirect_stderr(Quiet(sys.stderr)):
        yield
