"""Signals that ask a training process to stop, from its first moment on: they only set a flag, and what it starts is spared.

Imported before anything heavy, since the imports of training take seconds in which a signal would end the process.
"""

import os
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

WARNING = signal.SIGUSR1
"""What Slurm is told to send before the wall time ends. It reaches every process of a job step."""


class StopSignals:
    """The first signal that has asked this process to stop.

    The warning is blocked and a thread waits for it: programs started from here (the tracker's service, compilers) inherit the
    block and live on, and the training thread is not disturbed. SIGTERM, and Ctrl-C once training has taken it over, come to a
    handler that notes them; a second Ctrl-C ends the process at once. A forked child forgets all of it.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self.began = time.time()
        """When the process began, to within the start of the interpreter (seconds since the epoch)."""
        self.interrupts = 0
        self.held: dict[int, Any] = {}
        """The handlers that were there before, by the signals that are noted now."""
        self.waiting: int | None = None
        """The process whose thread waits for the warning."""
        os.register_at_fork(after_in_child=self.forget)

    def hold(self, *numbers: signal.Signals) -> set[signal.Signals]:
        """Note these signals from here on; returns those that were not noted before. Only the main thread may call it."""
        new = {number for number in numbers if number not in self.held}
        for number in numbers:
            before = signal.signal(number, self.note)
            self.held.setdefault(number, before)
        if WARNING in numbers:
            signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})
            if self.waiting != os.getpid():
                self.waiting = os.getpid()
                threading.Thread(target=self.wait, name="signals", daemon=True).start()
        return new

    def wait(self) -> None:
        while True:
            self.note(signal.sigwait({WARNING}))

    def note(self, number: int, frame: FrameType | None = None) -> None:
        if number == signal.SIGINT:
            self.interrupts += 1
            if self.interrupts > 1:
                raise SystemExit(128 + number)
        if number in self.held and self.received is None:
            self.received = signal.Signals(number)

    def release(self, numbers: Iterable[int]) -> None:
        """Give these signals back to whoever had them before."""
        for number in numbers:
            signal.signal(number, self.held.pop(number))
        self.received, self.interrupts = None, 0

    def ignore(self) -> None:
        """Let neither the warning nor SIGTERM disturb the end of the process, in which Python's handlers no longer run."""
        self.received = None
        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def forget(self) -> None:
        """In a forked child: what it is sent is between it and its sender, and the warning is not for it."""
        for number in self.held:
            if number != WARNING and signal.getsignal(number) == self.note:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self.held, self.received, self.interrupts = {}, None, 0


HELD = StopSignals()
"""A process has one set of handlers, and so one of these."""
