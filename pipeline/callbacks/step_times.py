"""Where the time of a step goes: data, forward, backward, communication, optimizer."""

import time
from collections import deque
from typing import Any, Protocol

import torch
from lightning import Trainer

from pipeline.callbacks.buckets import listen
from pipeline.callbacks.gauges import Gauge
from pipeline.task import LanguageModelling

PHASES = ("data", "forward", "backward", "communication", "optimizer")


class Clock(Protocol):
    """Marks in the stream of work; the time between two is known once the work has passed the second."""

    def mark(self) -> Any: ...

    def passed(self, mark: Any) -> bool: ...

    def seconds(self, start: Any, end: Any) -> float: ...


class HostClock:
    """For a CPU, where a call returns when its work is done."""

    def mark(self) -> float:
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """For a GPU: events in the stream of kernels, which nothing waits for."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000


class StepTimes(Gauge):
    """`time/<phase>`: seconds of an optimizer step, averaged over the steps since the row before, on the first rank.

    - data: for how long a step waited for its batches.
    - forward: from the batch to the loss, over all micro-batches.
    - backward: as far as gradients are computed.
    - communication: under DDP the part that computing does not hide, from when the last bucket of gradients is sent off until all
      are averaged; waiting for a slower rank counts here. Under ZeRO it is not told apart: it lies in backward and optimizer, and
      of stage 3 in forward too.
    - optimizer: clipping, the step, and what the strategy does around them.

    Seconds are the host's on a CPU and the stream's on CUDA, where the host runs ahead.
    """

    def __init__(self):
        self.clock: Clock = HostClock()
        self.pending: deque[tuple[str, Any, Any]] = deque()
        self.totals: dict[str, float] = {}
        self.sent: Any = None
        self.waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.clock = CudaClock() if pl_module.device.type == "cuda" else HostClock()
        listen(trainer, self.on_bucket)
        self.waited = self.waited_for_data(trainer)
        self.begin(trainer)

    def begin(self, trainer: Trainer) -> None:
        self.totals = {}
        self.since = trainer.global_step

    @staticmethod
    def waited_for_data(trainer: Trainer) -> float:
        return trainer.train_dataloader.waited  # pyright: ignore[reportOptionalMemberAccess]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModelling, batch: Any, batch_idx: int) -> None:
        self.last, self.sent = self.clock.mark(), None

    def on_before_backward(self, *args: Any) -> None:
        self.end("forward", self.clock.mark())

    def on_bucket(self, bucket: Any) -> None:
        # A bucket is sent when all of its gradients, and all buckets before it, are there: the last one ends the computing.
        self.sent = self.clock.mark()

    def on_after_backward(self, *args: Any) -> None:
        now = self.clock.mark()
        if self.sent is None:
            self.end("backward", now)
        else:
            self.end("backward", self.sent)
            self.end("communication", now)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.end("optimizer", self.clock.mark())
        self.fold()

    def end(self, phase: str, mark: Any) -> None:
        self.pending.append((phase, self.last, mark))
        self.last = mark

    def fold(self) -> None:
        """Add up what has passed; the rest of what a GPU still has before it waits for the next step."""
        while self.pending and self.clock.passed(self.pending[0][2]):
            phase, start, end = self.pending.popleft()
            self.totals[phase] = self.totals.get(phase, 0.0) + self.clock.seconds(start, end)

    def read(self, trainer: Trainer, pl_module: LanguageModelling) -> dict[str, float]:
        self.fold()
        waited, steps = self.waited_for_data(trainer), trainer.global_step - self.since
        self.totals["data"] = waited - self.waited
        self.waited = waited
        row = {f"time/{phase}": self.totals[phase] / steps for phase in PHASES if phase in self.totals}
        self.begin(trainer)
        return row
