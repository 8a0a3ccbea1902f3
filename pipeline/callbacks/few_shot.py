"""Few-shot evaluation while training goes on: chosen tasks every so many tokens, on all ranks, within a share of the time.

Training does not notice: the random numbers, the modes of the modules and the weights are afterwards what they were before, and the
clock of the metrics stands still meanwhile.
"""

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch import distributed

from data_prep.files import InputError
from data_prep.tokenizer import Tokenizer
from pipeline.callbacks.graceful_stop import GracefulStop
from pipeline.callbacks.heartbeat import Heartbeat
from pipeline.callbacks.metrics_log import MetricsLog
from pipeline.callbacks.undisturbed import precision_of, quiet_thread, undisturbed
from pipeline.step_loop import StepCallback
from pipeline.step_records import append_line, keep_lines, read_lines
from pipeline.task import LanguageModelling

JOURNAL = Path("evaluation", "in_loop.jsonl")
DONE, FAILED, STOPPED = 0, 1, 3
"""What the first rank tells the others of an evaluation that has ended."""
COLUMNS = ("task", "kind", "shots", "metric", "scoring", "score", "stderr", "chance", "n", "higher_is_better")


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Few-shot evaluation of the model in training, as `evaluate` does it afterwards."""

    every_tokens: int | None = None
    """Tokens between two evaluations; none is made when not given."""
    tasks: list[str] | None = None
    """Tasks, groups or tags by name; those of the first look that `evaluate` takes when not given."""
    shots: list[int] | None = None
    """Examples in the prompt, several numbers for several scores; the tasks' own when not given."""
    limit: int | None = 100
    """Score only the first so many questions of each task; null: all."""
    include: str | None = None
    """Folder of task YAMLs of your own."""
    data: dict[str, str] | None = None
    """Files of questions by task; those for the examples by TASK:fewshot."""
    batch_tokens: int = 4096
    """Tokens in a batch, padding included, on each rank."""
    seed: int = 0
    """Draws the examples in the prompts, and sampled answers."""
    time_share: float = 0.1
    """The most that evaluations may take of the time of the run: one that is due waits until another as long as the last fits.
    The first is made when it is due, since nobody knows how long it takes."""
    averaged: bool = False
    """Evaluate the moving average of the weights, which model.ema_half_life_tokens keeps."""

    def __post_init__(self):
        for name in ("every_tokens", "limit", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"few_shot.{name} is {value}: it must be at least 1")
        if not 0 < self.time_share <= 1:
            raise ValueError(f"few_shot.time_share is {self.time_share}: it must lie in (0, 1]")
        if self.shots is not None and (not self.shots or min(self.shots) < 0):
            raise ValueError(f"few_shot.shots is {self.shots}: it must be a list of numbers from 0 on, such as [0, 5]")
        if self.tasks == []:
            raise ValueError("few_shot.tasks is empty: name tasks, or leave it out for those that need no file")

    def files(self) -> dict[str, dict[str, str]]:
        """The files of `data` by task and split: test, fewshot."""
        files: dict[str, dict[str, str]] = {}
        for key, file in (self.data or {}).items():
            name, colon, split = key.partition(":")
            if colon and split not in ("test", "fewshot"):
                raise InputError(f"few_shot.data names {key!r}: it must be a task, or a task and :fewshot")
            files.setdefault(name, {})[split or "test"] = file
        return files


class FewShotInTraining(StepCallback):
    """Carries out the `few_shot` section.

    Scores go to the loggers as few_shot/TASK@K/METRIC, and a line for each evaluation to RUN/evaluation/in_loop.jsonl. One that a
    signal or the end of the wall time cuts short is made first when the run goes on, with the same weights.

    Args:
        clock: stands still meanwhile. It comes before this callback, `graceful`, which stops the run, after it.
    """

    def __init__(self, settings: FewShot, clock: MetricsLog, heartbeat: Heartbeat, graceful: GracefulStop):
        self.settings, self.clock, self.heartbeat, self.graceful = settings, clock, heartbeat, graceful
        self.pending = False
        """Whether an evaluation is due that was not made so far; the same on all ranks."""
        self.spent = self.last = 0.0
        """Seconds of all evaluations, and of the last whole one."""
        self.before = 0.0
        """Seconds of the run in earlier processes."""
        self.began = time.monotonic()
        self.loaded: list[tuple[Any, list[int]]] = []
        """On the first rank: tasks, and numbers of examples."""
        self.lm: Any = None

    @property
    def on(self) -> bool:
        return self.settings.every_tokens is not None

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, evaluations included."""
        return self.before + time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        if not self.on:
            return {}
        return {"pending": self.pending, "spent": self.spent, "last": self.last, "elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pending = state_dict.get("pending", False)
        self.spent, self.last = state_dict.get("spent", 0.0), state_dict.get("last", 0.0)
        self.before, self.began = state_dict.get("elapsed", 0.0), time.monotonic()

    # -- before training

    def setup(self, trainer: Trainer, pl_module: LanguageModelling, stage: str) -> None:
        if stage != "fit" or not self.on:
            return
        # Whatever is wrong is said now, on all ranks alike, and not hours later.
        with quiet_thread():
            problem = self.prepare(trainer, pl_module) if trainer.is_global_zero else None
        if problem := trainer.strategy.broadcast(problem):
            raise InputError(problem)
        self.group = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None

    def prepare(self, trainer: Trainer, pl_module: LanguageModelling) -> str | None:
        """Load the tasks; the sentence of what is wrong, if anything is."""
        if pl_module.architecture.family == "classifier":
            return "few_shot.every_tokens is given, but a classifier writes no text: leave the section out"
        if self.settings.averaged and not pl_module.ema_half_life_tokens:
            return (
                "few_shot.averaged is true, but the run keeps no average of its weights: set model.ema_half_life_tokens"
            )
        # Processes that are forked from a training process inherit its threads' locks.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        for library in ("lm_eval", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.ERROR)
        from pipeline.evaluation import protocol, tasks

        documents = Path(pl_module.data.path).parent / "split"
        include = None if self.settings.include is None else Path(self.settings.include)
        try:
            metadata = {"documents": str(documents) if documents.is_dir() else None, "data": self.settings.files()}
            manager, names = tasks.find(self.settings.tasks, include, metadata)
            for name in names:
                loaded = tasks.load(manager, name)
                for single, task in loaded["tasks"].items():
                    if getattr(task, "UNSAFE_CODE", False):
                        return f"few_shot.tasks has {single}, which runs programs that the model writes: leave it to `evaluate`"
                self.loaded.append((loaded, protocol.shots_of(loaded, self.settings.shots)))
        except InputError as error:
            return f"few_shot: {error}"
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not self.on:
            return
        from pipeline.evaluation.harness import PipelineLM
        from pipeline.evaluation.ranks import Ranks

        ranks = Ranks(
            rank=trainer.global_rank, size=trainer.world_size, device=pl_module.device, group=self.group,
            # Where the weights are in parts, all ranks gather them for every forward pass.
            lockstep=getattr(trainer.strategy, "stage", 0) == 3, batches_a_turn=1,
            wants_stop=partial(self.wants_stop, trainer), on_turn=lambda: self.heartbeat.get_on("few-shot evaluation"),
        )  # fmt: skip
        tokenizer = Tokenizer.load(pl_module.data.path)
        self.lm = PipelineLM(
            pl_module.model, tokenizer, batch_tokens=self.settings.batch_tokens, seed=self.settings.seed, ranks=ranks
        )
        step, made = trainer.global_step, False
        if trainer.is_global_zero:
            journal = Path(trainer.default_root_dir) / JOURNAL
            keep_lines(journal, lambda line: 0 < line["step"] <= step)
            made = any(line["step"] == step for line in read_lines(journal))
        made = trainer.strategy.broadcast(made)
        # A checkpoint is saved before the evaluation of its step, which a kill may have prevented.
        due = step > 0 and pl_module.data.due(step, self.settings.every_tokens)
        self.pending = (self.pending or due) and not made
        if self.pending:
            # The end of the wall time is asked for again when `graceful` begins, which also stops the run where that was wanted.
            self.graceful.forecast.begin(trainer, pl_module)
            self.consider(trainer, pl_module)

    # -- in training

    def on_step_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not self.on:
            return
        self.pending |= pl_module.data.due(trainer.global_step, self.settings.every_tokens)
        if self.pending:
            self.consider(trainer, pl_module)

    def wants_stop(self, trainer: Trainer) -> bool:
        return self.graceful.signals.received is not None or self.graceful.forecast.falls_short(trainer, 0.0)

    def fits(self, trainer: Trainer) -> bool:
        """Whether another evaluation as long as the last keeps within the share, and within the wall time."""
        if self.wants_stop(trainer) or self.graceful.forecast.falls_short(trainer, self.last):
            return False
        return self.last == 0 or self.spent + self.last <= self.settings.time_share * (self.elapsed + self.last)

    def consider(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        """Evaluate, if the first rank finds the time for it; every rank calls this."""
        if trainer.strategy.broadcast(trainer.is_global_zero and self.fits(trainer)):
            self.pending = self.evaluate(trainer, pl_module) == STOPPED

    def evaluate(self, trainer: Trainer, pl_module: LanguageModelling) -> int:
        """Evaluate on all ranks; returns how it ended."""
        began = time.monotonic()
        self.heartbeat.get_on("few-shot evaluation")
        rows: list[dict[str, Any]] = []
        average = pl_module.averaged if self.settings.averaged else None
        swapped = average.in_place(trainer.strategy.state_loaded) if average else contextlib.nullcontext()  # pyright: ignore[reportAttributeAccessIssue]
        with swapped, undisturbed(pl_module.model, pl_module.compiled), precision_of(trainer, pl_module.device):
            ended = self.score(trainer, rows) if trainer.is_global_zero else self.lm.ranks.serve(self.lm.perform)
        seconds = time.monotonic() - began
        self.spent += seconds
        if ended != STOPPED:
            self.last = seconds
        if ended == DONE and trainer.is_global_zero:
            self.note(trainer, pl_module, seconds, rows)
        self.clock.pause()
        self.heartbeat.get_on("callbacks after a few-shot evaluation")
        return ended

    def score(self, trainer: Trainer, rows: list[dict[str, Any]]) -> int:
        """On the first rank: score all tasks, and release the others however that ends."""
        from pipeline.evaluation import protocol
        from pipeline.evaluation.ranks import Stopped

        ended = FAILED
        settings = self.settings
        try:
            with quiet_thread():
                for task, counts in self.loaded:
                    for shots in counts:
                        output = protocol.score(
                            self.lm, task, shots, seed=settings.seed, limit=settings.limit, scoring="harness"
                        )
                        scored = protocol.rows_of(output, task, whole=False)
                        rows += [{name: row.get(name) for name in COLUMNS} for row in scored]
            ended = DONE
        except Stopped:
            ended = STOPPED
        except Exception as error:  # A task is a stranger's; days of training do not end for it.
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, InputError) else str(error)
            print(
                f"\nThe few-shot evaluation after step {trainer.global_step} failed, and training goes on: {reason}",
                file=sys.stderr,
                flush=True,
            )
        finally:
            self.lm.ranks.end(ended)
        return ended

    def note(self, trainer: Trainer, pl_module: LanguageModelling, seconds: float, rows: list[dict[str, Any]]) -> None:
        share = self.spent / self.elapsed
        row = {
            f"few_shot/{each['task']}@{each['shots']}/{each['metric']}": each["score"]
            for each in rows
            if each["score"] is not None
        }
        row |= {"time/few_shot": seconds, "time/few_shot_share": share}
        self.clock.write(trainer, self.clock.progress(trainer, pl_module) | row)
        line = {
            **{"step": trainer.global_step, "tokens": pl_module.data.tokens_at(trainer.global_step)},
            **{
                "seconds": round(seconds, 3),
                "share": round(share, 4),
                "averaged": self.settings.averaged,
                "scores": rows,
            },
        }
        append_line(Path(trainer.default_root_dir) / JOURNAL, line)
