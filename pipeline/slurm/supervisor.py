"""Starts training, and starts it again: after a crash at once, after a preemption or at the end of the wall time by requeueing.

It sits in the batch shell of a Slurm job, or on any machine. What it decides depends on the exit status of the command, on what the
ranks have said of their ends (`run_state.note_end`) and on whether the newest checkpoint has moved; what it decided, and why, is a
line of the journal.
"""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import InputError
from pipeline import exit_codes, run_state
from pipeline.slurm import attempts, cluster
from pipeline.slurm.attempts import Journal

STOPPING = (signal.SIGTERM, signal.SIGUSR1)
"""What Slurm sends: the ranks answer, not the shell that they were started from."""

LONGEST_WAIT_SECONDS = 60

PATIENCE_SECONDS = 300
"""How long Slurm's controller may be away."""


@dataclass(frozen=True)
class Ending:
    """What an exit status of training means for the next attempt."""

    outcome: str
    reason: str
    counts: bool = True
    """Whether it is held against the run if there is no newer checkpoint."""
    elsewhere: bool = False
    """Whether the next attempt should have another allocation."""
    exclude: tuple[str, ...] = ()
    """Nodes that it should not get."""


class Place(ABC):
    """Where the attempts take place."""

    job: str
    nodes: str

    @abstractmethod
    def ending_already(self) -> str | None:
        """Why no next attempt is ours to make (the job was cancelled, say); None where it is."""

    @abstractmethod
    def move(self, exclude: Sequence[str]) -> None:
        """Have the next attempt take place in another allocation; does not return where that ends this process.

        Raises:
            InputError: it cannot be had.
        """


class Here(Place):
    """No scheduler: the next attempt takes place where this one did."""

    def __init__(self):
        self.nodes = os.uname().nodename
        self.job = f"{self.nodes}-{os.getpid()}-{time.time():.0f}"
        self.asked_to_stop: int | None = None

    def ending_already(self) -> str | None:
        if self.asked_to_stop:
            return f"asked to stop by {signal.Signals(self.asked_to_stop).name}"
        return None

    def move(self, exclude: Sequence[str]) -> None:
        """There is nowhere else."""


class Job(Place):
    """Inside a Slurm job."""

    def __init__(self):
        self.job = os.environ["SLURM_JOB_ID"]
        self.nodes = os.environ.get("SLURM_JOB_NODELIST", "")

    def state(self) -> str:
        """What Slurm says of the job; a controller that is being restarted is waited for.

        Raises:
            InputError: it does not come back.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return cluster.job_state(self.job)
            except InputError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(5)

    def ending_already(self) -> str | None:
        try:
            state = self.state()
        except InputError:
            return None  # A crash can be mended here, without Slurm.
        if state in ("RUNNING", "SUSPENDED", ""):
            return None
        if time.time() >= float(os.environ.get("SLURM_JOB_END_TIME", "inf")):
            return None  # Its time is up, and nobody cancelled it: it may be queued again.
        return "the job was cancelled, or Slurm has queued it again already"

    def move(self, exclude: Sequence[str]) -> None:
        cluster.requeue(self.job, exclude=list(exclude))
        time.sleep(600)  # Slurm ends this shell.


class Supervisor:
    """Brings a run to its end.

    Args:
        run: its directory.
        command: starts training, and goes on with it when it is started again.
        preflight: checks the nodes, before each attempt.
        max_restarts: so many attempts in a row may end without a newer checkpoint and be followed by another.
        wait_seconds: before an attempt that follows a crash; twice as long each time there was no progress.
    """

    def __init__(
        self, run: Path, command: Sequence[str], *, preflight: Sequence[str] = (), max_restarts: int = 3,
        wait_seconds: float = 1.0,
    ):  # fmt: skip
        if not command:
            raise InputError("There is nothing to supervise: give the command after --")
        if max_restarts < 0:
            raise InputError(f"--max-restarts is {max_restarts}: it must be at least 0")
        self.run, self.command, self.preflight = Path(run), list(command), list(preflight)
        self.max_restarts, self.wait_seconds = max_restarts, wait_seconds
        self.journal = Journal(self.run)
        self.place: Place = Job() if "SLURM_JOB_ID" in os.environ else Here()
        self.process: subprocess.Popen | None = None

    def supervise(self) -> int:
        """Attempt after attempt; return the exit status of the last one."""
        previous = {number: signal.signal(number, self.answer) for number in STOPPING}
        try:
            while True:
                code, again = self.attempt()
                if not again:
                    return code
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def answer(self, number: int, frame: object) -> None:
        """Under Slurm the ranks have the same signal from Slurm itself; elsewhere it is handed on."""
        if isinstance(self.place, Here):
            self.place.asked_to_stop = number
            if self.process:
                self.process.send_signal(number)

    def attempt(self) -> tuple[int, bool]:
        """One attempt: its exit status, and whether another is to follow in this place."""
        run_state.clear_ends(self.run)
        lost = self.journal.without_progress(self.place.job)
        if lost > self.max_restarts:
            self.say(f"{lost} attempts in a row ended without a newer checkpoint: see {self.journal.path}")
            return 1, False
        attempt = self.journal.begin(self.place.job, self.place.nodes)
        try:
            code = self.start(self.preflight) if self.preflight else exit_codes.DONE
            code = code or self.start(self.command)
        except KeyboardInterrupt:
            code = exit_codes.of_signal(signal.SIGINT)
        code = self.status_of_ranks(code)
        ending = self.judge(code)
        why_not = self.place.ending_already() if code else None
        if why_not:
            ending = Ending(attempts.STOPPED, f"{ending.reason}; {why_not}", counts=False)
        self.journal.end(attempt, code=code, outcome=ending.outcome, reason=ending.reason, counts=ending.counts)
        step = attempts.newest_step(self.run)
        here = f"attempt {attempt.number} ended with step {step} saved: {ending.reason}"
        if ending.outcome not in (attempts.REQUEUED, attempts.RESTARTED):
            self.say(here)
            return code, False
        lost = self.journal.without_progress(self.place.job)
        if lost > self.max_restarts:
            reason = (
                f"{lost} attempts in a row ended without a newer checkpoint than step {step}; the last: {ending.reason}"
            )
            self.journal.end(attempt, code=code, outcome=attempts.FAILED, reason=reason, counts=True)
            self.say(f"{reason}. Nothing is lost: mend it, and submit again")
            return code, False
        bound = f" ({lost} of {self.max_restarts} without progress)" if lost else ""
        if ending.elsewhere and isinstance(self.place, Job):
            without = f", without {', '.join(ending.exclude)}" if ending.exclude else ""
            self.say(f"{here}; queued again{without}{bound}")
            try:
                self.place.move(ending.exclude)
            except InputError as error:
                self.journal.end(attempt, code=code, outcome=attempts.FAILED, reason=str(error), counts=True)
                self.say(str(error))
            return code, False
        self.say(f"{here}; starting again{bound}")
        time.sleep(min(self.wait_seconds * 2 ** max(0, lost - 1), LONGEST_WAIT_SECONDS))
        return code, True

    def start(self, command: Sequence[str]) -> int:
        """Run a command to its end; its exit status as a shell has it."""
        try:
            self.process = subprocess.Popen(command)
        except OSError as error:
            raise InputError(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            code = self.process.wait()
        except KeyboardInterrupt:
            # The terminal has sent it to the command, too.
            self.process.wait()
            raise
        finally:
            self.process = None
        return code if code >= 0 else exit_codes.of_signal(-code)

    def status_of_ranks(self, code: int) -> int:
        """The exit status that the first rank to end has given for itself, where a launcher made it 1, as torchrun does."""
        said = run_state.ends(self.run)
        return said[0]["code"] if code == 1 and said else code

    def judge(self, code: int) -> Ending:
        """What an exit status means."""
        said = [end for end in run_state.ends(self.run) if end["code"] == code] or run_state.ends(self.run)
        reason = f"{said[0]['reason']} (rank {said[0]['rank']} on {said[0]['host']})" if said else meaning(code)
        if code == exit_codes.DONE:
            return Ending(attempts.DONE, "trained to the end", counts=False)
        if code == exit_codes.REFUSED:
            return Ending(attempts.REFUSED, reason)
        if code in (exit_codes.SPIKE_STOPPED, exit_codes.of_signal(signal.SIGINT)):
            return Ending(attempts.STOPPED, reason)
        if code == exit_codes.BAD_NODE:
            bad = tuple(cluster.bad_nodes(self.run))
            return Ending(attempts.REQUEUED, reason, elsewhere=True, exclude=bad)
        preempted = code == exit_codes.of_signal(signal.SIGTERM)
        if preempted or code in (
            exit_codes.OUT_OF_TIME,
            exit_codes.HUNG,
            exit_codes.of_signal(signal.SIGUSR1),
        ):
            elsewhere = isinstance(self.place, Job)
            outcome = attempts.REQUEUED if elsewhere else attempts.RESTARTED
            return Ending(outcome, reason, counts=not preempted, elsewhere=elsewhere)
        return Ending(attempts.RESTARTED, reason)

    @staticmethod
    def say(text: str) -> None:
        print(f"supervise: {text}", file=sys.stderr, flush=True)


def meaning(code: int) -> str:
    """An exit status, for people."""
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"exit status {code}"
