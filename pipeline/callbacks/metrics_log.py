"""The clock and the log: training time, tokens per second, MFU, what the gauges show, and one row of metrics a logged step."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from data_prep.files import write_json
from pipeline import metrics
from pipeline.callbacks.gauges import Gauge
from pipeline.task import LanguageModelling
from pipeline.tracking import CSVLog, WandbLog

AGAIN = 5
"""Validations after which the peak is measured once more, while training stands still anyway."""


class MetricsLog(Callback):
    """Writes every logged row to all loggers, with the tokens, seconds and FLOPs at which it was measured.

    Seconds count training alone: validation, saving and start-up stand still on this clock, and a continued run goes on with it.
    For how long it stood still says `time/validation` in the row of a validation and, in the next row of a step,
    `time/checkpoint`, of the last save.

    Args:
        gauges: Add columns to the row of a step; they belong to the Trainer's callbacks, before this one.
    """

    def __init__(self, gauges: Sequence[Gauge] = ()):
        self.gauges = gauges
        self.seconds = 0.0
        self.waited = 0.0
        """Seconds since the last logged step in which this rank waited for data."""
        self.peaks: dict[str, float] = {}
        """FLOP/s of matrix products by processor and number format: the best of all measurements in the run."""
        self.mark: float | None = None
        self.saved = False
        """Whether a checkpoint was saved since the last logged step."""
        self.latest: dict[str, float] = {}
        """The last row of training metrics."""

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "peaks": self.peaks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.peaks = dict(state_dict.get("peaks", {}))

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.device, self.times_left = pl_module.device, AGAIN
        low = "bf16" in str(trainer.precision)
        self.dtype = (
            torch.bfloat16 if low else torch.float16 if str(trainer.precision).startswith("16") else torch.float32
        )
        self.unit = f"{metrics.processor(self.device)}, {self.dtype}"
        # A continued run on the same processor has a figure to improve on already.
        self.measure_peak(0.1 if self.unit in self.peaks else 0.5)

    @property
    def peak_flops(self) -> float:
        """FLOP/s that this processor has been seen to do in matrix products."""
        return self.peaks[self.unit]

    def measure_peak(self, seconds: float) -> None:
        measured = metrics.matmul_peak(self.device, self.dtype, seconds=seconds)
        self.peaks[self.unit] = max(measured, self.peaks.get(self.unit, 0.0))

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog | WandbLog):
                logger.continue_from(trainer.global_step)
            if isinstance(logger, WandbLog):
                pl_module.notes["wandb"] = logger.version
        self.flops_per_token = pl_module.outline.flops_per_token(pl_module.data.context)
        self.logged_step, self.logged_seconds = trainer.global_step, self.seconds
        self.loader_waited = 0.0
        self.pause()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModelling, batch: Any, batch_idx: int) -> None:
        waited = trainer.train_dataloader.waited  # pyright: ignore[reportOptionalMemberAccess]
        if self.mark is None:
            self.mark = time.perf_counter()
        else:
            self.waited += waited - self.loader_waited
        self.loader_waited = waited

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LanguageModelling, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - (self.mark or now)
        self.mark = now
        if not pl_module.step_ended:
            return
        due = trainer.global_step % trainer.log_every_n_steps == 0  # pyright: ignore[reportAttributeAccessIssue]
        if due or pl_module.step_skipped:
            self.log_step(trainer, pl_module, pl_module.measure_step(batch.valid_tokens))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LanguageModelling, checkpoint: dict[str, Any]) -> None:
        self.saved = True
        self.pause()

    def pause(self) -> None:
        """Stop the clock until the next batch begins."""
        self.mark = None

    def progress(self, trainer: Trainer, pl_module: LanguageModelling) -> dict[str, float]:
        tokens = pl_module.data.tokens_at(trainer.global_step)
        return {"tokens": tokens, "seconds": round(self.seconds, 3), "flops": tokens * self.flops_per_token}

    def log_step(self, trainer: Trainer, pl_module: LanguageModelling, step_metrics: dict[str, float]) -> None:
        progress = self.progress(trainer, pl_module)
        tokens = progress["tokens"] - pl_module.data.tokens_at(self.logged_step)
        seconds = max(self.seconds - self.logged_seconds, 1e-9)
        rate = tokens / seconds
        # As a share of the time; of the rank that waited longest, since the others wait for it.
        waited = trainer.strategy.reduce(torch.tensor(self.waited, device=pl_module.device), reduce_op="max")
        self.logged_step, self.logged_seconds, self.waited = trainer.global_step, self.seconds, 0.0
        if pl_module.passed_over:
            self.write(trainer, progress | step_metrics)
            return
        speed = {
            "train/tokens_per_second": rate,
            "train/data_wait": float(waited) / seconds,
            "train/mfu": rate * self.flops_per_token / (self.peak_flops * trainer.world_size),
        }
        if self.saved:
            speed["time/checkpoint"] = trainer.strategy.pause_seconds  # pyright: ignore[reportAttributeAccessIssue]
            self.saved = False
        self.latest = progress | step_metrics | speed
        for gauge in self.gauges:
            # Six digits, or the file is mostly noise.
            self.latest |= {name: float(f"{value:.6g}") for name, value in gauge.read(trainer, pl_module).items()}
        self.write(trainer, self.latest)

    def on_validation_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.pause()
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            row = {f"val/{name}": value for name, value in pl_module.scores().items()}
            row["time/validation"] = time.perf_counter() - self.validation_began
            self.write(trainer, self.progress(trainer, pl_module) | row)
            if self.times_left:
                self.times_left -= 1
                self.measure_peak(0.05)
        self.save_evaluation(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.save_evaluation(trainer, pl_module)

    def save_evaluation(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not trainer.is_global_zero:
            return
        evaluation = pl_module.evaluation
        write_json(
            Path(trainer.default_root_dir) / f"{evaluation['split']}.json",
            {
                "checkpoint": str(trainer.ckpt_path) if trainer.state.fn != "fit" else None,
                **pl_module.progress(),
                **evaluation,
            },
        )

    def write(self, trainer: Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)
