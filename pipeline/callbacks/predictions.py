"""`predict` writes the loss of every token, for a look at what a model finds hard."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning import Callback, Trainer

from data_prep.files import atomic_path
from pipeline.models.base import NO_TOKEN
from pipeline.task import LanguageModelling


class TokenLosses(Callback):
    """Writes predictions.parquet into the run directory: window (int64; of pairs, the pair), tokens (list of ids; of labelled texts, the class), nll (list of nats) for the test split."""

    SCHEMA = pa.schema({"window": pa.int64(), "tokens": pa.list_(pa.int32()), "nll": pa.list_(pa.float32())})

    def on_predict_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.tables: list[pa.Table] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LanguageModelling, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows = [
            (int(window), targets[valid].tolist(), nll[valid].tolist())
            for window, targets, nll in zip(outputs[0], batch.targets_BT, outputs[1], strict=True)
            if (valid := targets != NO_TOKEN).any()
        ]
        if rows:
            self.tables.append(pa.table([list(column) for column in zip(*rows, strict=True)], schema=self.SCHEMA))

    def on_predict_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        name = "predictions.parquet" if trainer.world_size == 1 else f"predictions-{trainer.global_rank:05d}.parquet"
        path = Path(trainer.default_root_dir) / name
        with atomic_path(path) as temporary:
            pq.write_table(pa.concat_tables([self.SCHEMA.empty_table(), *self.tables]), temporary)
        print(f"Wrote the loss of every token of the test split to {path}", flush=True)
