"""Signs of life of every rank, and a watchdog: when a run stands still, the ranks' stacks, the name of the one behind, and an end."""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer

from pipeline import exit_codes, run_state
from pipeline.step_loop import StepCallback
from pipeline.task import LanguageModelling

RECORD_BYTES = 512
"""A heartbeat is overwritten in place, always by as many bytes, so that a reader finds a whole one."""
MISSED_BEATS = 3
"""A rank that has missed so many does not beat."""
DUMP_SIGNAL = signal.SIGUSR2
"""Makes a rank write its stacks even while its interpreter is held by a call that does not return."""

STATES = {
    "R": "it runs, in a call that keeps the interpreter to itself", "S": "it sleeps, in a call that keeps the interpreter to itself",
    "D": "it waits for a disk or a network drive", "T": "it was stopped (SIGSTOP)", "t": "a debugger holds it",
    "Z": "it is dead", None: "there is no such process any more",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """Ending a run that stands still, so that it is started again."""

    timeout_seconds: float | None = 1800.0
    """When no rank gets on for so long, all write the stacks of their threads, the one that is behind is named, and the processes
    end with status 76. Micro-batches, batches of a validation and bytes of a checkpoint count; start-up and the compiler in the
    first step must end within it. null: never."""
    beat_seconds: float = 5.0
    """Time between two signs of life, which `status` shows."""

    def __post_init__(self):
        if self.beat_seconds <= 0:
            raise ValueError(f"watchdog.beat_seconds is {self.beat_seconds}: it must be positive")
        if self.timeout_seconds is not None and self.timeout_seconds < 2 * self.beat_seconds:
            raise ValueError(
                f"watchdog.timeout_seconds is {self.timeout_seconds}: it must be at least twice watchdog.beat_seconds "
                f"({self.beat_seconds:g}), or null"
            )


class Heartbeat(StepCallback):
    """Notes where this rank is, which a thread of its own writes down, and looks after the others when it gets on no more."""

    def __init__(self, settings: Watchdog):
        self.settings = settings
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        self.step = self.batch = self.events = self.written = 0
        self.phase = "starting"
        self.got_on = self.progress = 0.0

    # -- where this rank is

    def setup(self, trainer: Trainer, pl_module: LanguageModelling, stage: str) -> None:
        # A run that is refused while it starts leaves no trace, so a new one is watched only from when training starts.
        if stage == "fit" and trainer.strategy.broadcast(Path(trainer.default_root_dir).exists()):
            self.begin(trainer)

    def begin(self, trainer: Trainer) -> None:
        self.run = Path(trainer.default_root_dir)
        self.rank, self.ranks, self.strategy = trainer.global_rank, trainer.world_size, trainer.strategy
        self.host, self.pid = socket.gethostname(), os.getpid()
        self.started = run_state.process_start(self.pid)
        self.file = run_state.heartbeat_file(self.run, self.rank)
        self.asked = run_state.state_folder(self.run) / "stacks" / "asked"
        if trainer.is_global_zero:
            shutil.rmtree(self.file.parent, ignore_errors=True)
            self.file.parent.mkdir(parents=True)
            self.asked.parent.mkdir(exist_ok=True)
            self.asked.unlink(missing_ok=True)
        trainer.strategy.barrier()
        self.open_stacks()
        self.get_on(self.phase)
        self.beat()
        self.thread = threading.Thread(target=self.watch, name="heartbeat", daemon=True)
        self.thread.start()

    def open_stacks(self) -> None:
        """Stacks of the last time stay, under another name."""
        path = run_state.stack_file(self.run, self.rank)
        if path.exists() and path.stat().st_size:
            path.replace(path.with_suffix(".previous.txt"))
        self.stacks = path.open("wb", buffering=0)
        if self.settings.timeout_seconds is not None:
            faulthandler.register(DUMP_SIGNAL, self.stacks, all_threads=True)

    def get_on(self, phase: str) -> None:
        self.phase = phase
        self.events += 1
        self.got_on, self.progress = time.monotonic(), time.time()

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.get_on("loading a checkpoint")

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if self.thread is None:
            self.begin(trainer)
        self.step = trainer.global_step
        self.get_on("waiting for data")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModelling, batch: Any, batch_idx: int) -> None:
        self.batch += 1
        self.get_on("forward pass")

    def on_before_backward(self, *args: Any) -> None:
        self.get_on("backward pass")

    def on_after_backward(self, *args: Any) -> None:
        self.get_on("optimizer step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        self.step = trainer.global_step
        if pl_module.step_ended:
            self.batch = 0
        self.get_on("callbacks after a batch")

    def on_validation_start(self, *args: Any) -> None:
        self.get_on("validation")

    def on_validation_batch_end(self, *args: Any) -> None:
        self.get_on("validation")

    def on_validation_end(self, *args: Any) -> None:
        self.get_on("callbacks after a validation")

    def on_save_checkpoint(self, *args: Any) -> None:
        self.get_on("saving")

    def on_step_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.get_on("waiting for data")

    def on_train_end(self, *args: Any) -> None:
        self.get_on("ending")

    def teardown(self, trainer: Trainer, pl_module: LanguageModelling, stage: str) -> None:
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LanguageModelling, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        """No more watching; what follows ends the process."""
        if self.thread is None:
            return
        self.over.set()
        self.thread.join()
        self.thread = None
        faulthandler.unregister(DUMP_SIGNAL)
        self.get_on("ended")
        self.beat()
        self.stacks.close()
        if not self.has_stacks(self.rank):
            run_state.stack_file(self.run, self.rank).unlink(missing_ok=True)

    # -- in the thread

    def watch(self) -> None:
        beats, timeout = self.settings.beat_seconds, self.settings.timeout_seconds
        looked = time.monotonic()
        while not self.over.wait(beats):
            now = time.monotonic()
            if now - looked > MISSED_BEATS * beats:
                # This process itself was stopped, or the machine slept.
                self.got_on = now
            looked = now
            self.count_written()
            self.beat()
            if timeout is None:
                continue
            # Needs no interpreter, should a call that does not return hold it. It does not end the process: Slurm suspends jobs, too.
            faulthandler.dump_traceback_later(timeout + beats, file=self.stacks)
            if self.asked.exists():
                self.answer()
            elif now - self.got_on > timeout and self.all_stand_still(timeout):
                self.find_out()
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        record = {
            "rank": self.rank, "ranks": self.ranks, "host": self.host, "pid": self.pid, "started": self.started, "step": self.step,
            "batch": self.batch, "phase": self.phase, "events": self.events, "progress": round(self.progress, 3),
            "time": round(time.time(), 3),
        }  # fmt: skip
        content = json.dumps(record).encode().ljust(RECORD_BYTES - 1) + b"\n"
        # Closed each time, or other nodes would see it late on a network drive; a full disk ends the run elsewhere.
        with contextlib.suppress(OSError):
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)

    def count_written(self) -> None:
        """Bytes that this rank has added to a checkpoint are progress."""
        if self.phase != "saving" and self.strategy.writing is None:  # pyright: ignore[reportAttributeAccessIssue]
            return
        written = 0
        for path in (self.run / "checkpoints").glob(f".*.partial/rank-{self.rank:05d}.*"):
            try:
                written += path.stat().st_size
            except OSError:
                continue
        if written != self.written:
            self.written = written
            self.got_on, self.progress = time.monotonic(), time.time()

    def all_stand_still(self, timeout: float) -> bool:
        """Whether no rank has got on: what waits for another that works is in its right."""
        now = time.time()
        return all(
            now - beat["progress"] > timeout for beat in run_state.heartbeats(self.run) if beat["rank"] != self.rank
        )

    # -- when the run stands still

    def find_out(self) -> None:
        """Ask all ranks for their stacks, name the one that is behind, and end the process."""
        try:
            os.close(os.open(self.asked, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return self.answer()
        faulthandler.dump_traceback(self.stacks, all_threads=True)
        beats = run_state.heartbeats(self.run)
        silent = silent_ranks(beats, self.ranks, MISSED_BEATS * self.settings.beat_seconds)
        for beat in beats:
            here = beat["rank"] in silent and beat["host"] == self.host
            if here and beat["started"] is not None and run_state.process_start(beat["pid"]) == beat["started"]:
                os.kill(beat["pid"], DUMP_SIGNAL)
        deadline = time.monotonic() + (MISSED_BEATS + 1) * self.settings.beat_seconds
        others = [rank for rank in range(self.ranks) if rank not in (self.rank, *silent)]
        while not all(self.has_stacks(rank) for rank in others) and time.monotonic() < deadline:
            time.sleep(min(0.1, self.settings.beat_seconds))
        verdict = describe(beats, silent, self.ranks, self.host)
        without = [rank for rank in range(self.ranks) if not self.has_stacks(rank)]
        lacking = f" (without {ranks_in_words(without)})" if without else ""
        print(f"\n{verdict} Stacks of all threads{lacking}: {self.asked.parent}/", file=sys.stderr, flush=True)
        self.end(verdict)

    def has_stacks(self, rank: int) -> bool:
        path = run_state.stack_file(self.run, rank)
        return path.exists() and path.stat().st_size > 0

    def answer(self) -> None:
        """Another rank has found the run standing still: give the stacks, and end after it."""
        faulthandler.dump_traceback(self.stacks, all_threads=True)
        os.fsync(self.stacks.fileno())
        deadline = time.monotonic() + 2 * (MISSED_BEATS + 1) * self.settings.beat_seconds
        found = None
        while found is None and time.monotonic() < deadline:
            time.sleep(min(0.1, self.settings.beat_seconds))
            found = next((end for end in run_state.ends(self.run) if end["code"] == exit_codes.HUNG), None)
        self.end(found["reason"] if found else "The run stood still.")

    def end(self, reason: str) -> None:
        try:
            run_state.note_end(self.run, code=exit_codes.HUNG, reason=reason, step=None, rank=self.rank)
        finally:
            # Python's own way out waits for the training thread, which does not return.
            os._exit(exit_codes.HUNG)


# -- who is behind


def silent_ranks(beats: Sequence[dict[str, Any]], ranks: int, patience: float) -> list[int]:
    """The ranks that have given no sign of life for so many seconds, or none at all."""
    now = time.time()
    alive = {beat["rank"] for beat in beats if now - beat["time"] <= patience}
    return [rank for rank in range(ranks) if rank not in alive]


def behind(beats: Sequence[dict[str, Any]], silent: Sequence[int]) -> list[int]:
    """The ranks that hold the others up: those that do not beat, else those that have got least far; none where all are level."""
    if silent:
        return list(silent)
    least = min(beat["events"] for beat in beats)
    ranks = [beat["rank"] for beat in beats if beat["events"] == least]
    return [] if len(ranks) == len(beats) and len(beats) > 1 else ranks


def describe(beats: Sequence[dict[str, Any]], silent: Sequence[int], ranks: int, host: str) -> str:
    """A sentence on who is behind, where, and for how long."""
    by_rank = {beat["rank"]: beat for beat in beats}
    late, now = behind(beats, silent), time.time()
    if not late:
        some = beats[0]
        return (
            f"The run stands still: no rank is behind the others, all {ranks} have been {place(some)} for {now - some['progress']:.0f} s, "
            "so look at the network."
        )
    parts = []
    for rank in late[:8]:
        beat = by_rank.get(rank)
        if beat is None:
            parts.append(f"rank {rank} never gave a sign of life")
            continue
        part = f"rank {rank} on {beat['host']} has been {place(beat)} for {now - beat['progress']:.0f} s"
        if rank in silent:
            part = f"rank {rank} on {beat['host']} gives no sign of life for {now - beat['time']:.0f} s"
            if beat["host"] == host and beat["started"] is not None:
                alive = run_state.process_start(beat["pid"]) == beat["started"]
                state = run_state.process_state(beat["pid"]) if alive else None
                part += f" ({STATES.get(state, f'state {state}')})"
            part += f", when it was {place(beat)}"
        parts.append(part)
    if len(late) > 8:
        parts.append(f"and {len(late) - 8} more")
    waiting = [beat for beat in beats if beat["rank"] not in late]
    rest = f"; {ranks_in_words([beat['rank'] for beat in waiting])} wait {place(waiting[0])}" if waiting else ""
    return f"The run stands still: {', '.join(parts)}{rest}."


def place(beat: dict[str, Any]) -> str:
    """Where a rank is, for people."""
    where = f"step {beat['step'] + 1}, micro-batch {beat['batch']}" if beat["batch"] else f"after step {beat['step']}"
    return f"at {beat['phase']!r} ({where})"


def ranks_in_words(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8])
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
