"""Which samples each step trained on, written down by every rank for itself: what `verify-resume` compares."""

import time
import zlib
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from pipeline.batch import Batch
from pipeline.models.base import NO_TOKEN
from pipeline.step_records import append_line, keep_lines
from pipeline.task import LanguageModelling


class SampleRecord(Callback):
    """Appends a line to samples-RANK.jsonl for every micro-batch: its step, and the number of each sample and a checksum of its targets and source.

    Args:
        folder: Where the files go.
        stand_still_after: After so many steps, train no further, until the process is killed.
    """

    def __init__(self, folder: str, stand_still_after: int | None = None):
        self.folder, self.stand_still_after = Path(folder), stand_still_after

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"samples-{trainer.global_rank:05d}.jsonl"
        step = trainer.global_step
        keep_lines(self.path, lambda line: line["step"] <= step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LanguageModelling, batch: Batch, batch_idx: int
    ) -> None:
        while trainer.global_step == self.stand_still_after:
            time.sleep(0.1)
        checksums = [0] * len(batch.samples_B)
        for tokens in (batch.targets_BT, batch.source_BS):
            # Without what fills a row up to the longest of its micro-batch, since that depends on its neighbours.
            for row, values in enumerate([] if tokens is None else tokens.cpu()):
                checksums[row] = zlib.crc32(values[values != NO_TOKEN].numpy().tobytes(), checksums[row])
        line: dict[str, Any] = {
            "step": trainer.global_step + 1,
            "samples": [*zip(batch.samples_B.tolist(), checksums, strict=True)],
        }
        append_line(self.path, line)
