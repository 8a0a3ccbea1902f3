"""One progress bar over the steps of the run; a plain line now and then where the output is not a terminal."""

import sys
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from pipeline.callbacks.metrics_log import MetricsLog
from pipeline.task import LanguageModelling

SECONDS_BETWEEN_LINES = 15


class StepProgress(ProgressBar):
    """Steps done, time left, loss, tokens per second and MFU; a line for every validation."""

    def __init__(self, metrics_log: MetricsLog):
        super().__init__()
        self.metrics_log = metrics_log
        self.bar: tqdm | None = None
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def open(self, what: str, total: int, done: int = 0) -> None:
        if not self.enabled or not self.trainer.is_global_zero:
            return
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            desc=what, total=total, initial=done, unit="step" if what == "fit" else "batch", dynamic_ncols=terminal,
            mininterval=0.5 if terminal else SECONDS_BETWEEN_LINES, maxinterval=1e9, leave=True,
            bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]\n",
        )  # fmt: skip

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.close()
        self.introduce(trainer, pl_module)
        self.open("fit", trainer.max_steps, trainer.global_step)

    def introduce(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not self.enabled or not trainer.is_global_zero:
            return
        data, counts = pl_module.data, pl_module.outline.parameter_counts()
        start = f"going on after step {trainer.global_step}" if trainer.global_step else "from the start"
        print(
            f"{pl_module.architecture.family} of {counts['total']:,} parameters on {data.path} "
            f"({data.train_tokens:,} tokens): {trainer.max_steps} steps of {data.batch_sizes()} tokens, {start}; "
            f"{trainer.precision}, {trainer.world_size} rank(s); run directory {trainer.default_root_dir}",
            flush=True,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        if self.bar is None or not pl_module.step_ended:
            return
        row = self.metrics_log.latest
        if row:
            self.bar.set_postfix_str(
                f"loss {row['train/loss']:.3f}, {row['train/tokens_per_second']:,.0f} tokens/s, MFU {row['train/mfu']:.0%}",
                refresh=False,
            )
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LanguageModelling, exception: BaseException) -> None:
        self.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.report(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.report(pl_module)

    def report(self, pl_module: LanguageModelling) -> None:
        if not self.enabled or not self.trainer.is_global_zero:
            return
        e = pl_module.evaluation
        by_byte = f", {e['bits_per_byte']:.4f} bits per byte" if e["bits_per_byte"] is not None else ""
        tqdm.write(
            f"{e['split']} after {pl_module.progress()['tokens_seen']:,} tokens: loss {e['loss']:.4f} nats, "
            f"perplexity {e['perplexity']:.2f}{by_byte}, accuracy {e['accuracy']:.1%}"
        )
