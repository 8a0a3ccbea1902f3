"""The clock and the log: training time, tokens per second, MFU, and one row of metrics a logged step."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from data_prep.files import write_json
from pipeline import metrics
from pipeline.task import LanguageModelling
from pipeline.tracking import CSVLog


class MetricsLog(Callback):
    """Writes every logged row to all loggers, with the tokens, seconds and FLOPs at which it was measured.

    Seconds count training alone: validation, saving and start-up stand still on this clock, and a continued run goes on with it.
    """

    def __init__(self):
        self.seconds = 0.0
        self.peak_flops = 0.0
        self.mark: float | None = None
        self.latest: dict[str, float] = {}
        """The last row of training metrics."""

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        low = "bf16" in str(trainer.precision)
        half = torch.bfloat16 if low else torch.float16 if str(trainer.precision).startswith("16") else torch.float32
        self.peak_flops = metrics.matmul_peak(pl_module.device, half)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.continue_from(trainer.global_step)
        self.flops_per_token = pl_module.model.flops_per_token(pl_module.data.context)
        self.logged_step, self.logged_seconds = trainer.global_step, self.seconds
        self.pause()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModelling, batch: Any, batch_idx: int) -> None:
        if self.mark is None:
            self.mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LanguageModelling, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - (self.mark or now)
        self.mark = now
        if pl_module.step_ended and trainer.global_step % trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self.log_step(trainer, pl_module, pl_module.measure_step(batch.valid_tokens))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LanguageModelling, checkpoint: dict[str, Any]) -> None:
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
        rate = tokens / max(self.seconds - self.logged_seconds, 1e-9)
        self.logged_step, self.logged_seconds = trainer.global_step, self.seconds
        speed = {
            "train/tokens_per_second": rate,
            "train/mfu": rate * self.flops_per_token / (self.peak_flops * trainer.world_size),
        }
        self.latest = progress | step_metrics | speed
        self.write(trainer, self.latest)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.pause()
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            row = {f"val/{name}": value for name, value in pl_module.scores().items()}
            self.write(trainer, self.progress(trainer, pl_module) | row)
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
