"""What a run directory says of its run: config.yaml, run.json and the tokenizer, so that it can be read, judged and reported alone."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from data_prep.files import read_json, write_json, write_text
from data_prep.tokenizer import Tokenizer
from pipeline.callbacks.metrics_log import MetricsLog
from pipeline.checkpoint import describe_model
from pipeline.metrics import cpu_name
from pipeline.task import LanguageModelling


class RunRecord(SaveConfigCallback):
    """Writes the record when training starts; a continued run keeps the time at which it began."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is written before training starts, so that a refused run leaves no trace."""

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        write_text(folder / "config.yaml", self.parser.dump(self.config, skip_none=False))
        Tokenizer.load(pl_module.data.path).save(folder / "tokenizer.json")
        write_json(folder / "run.json", record(trainer, pl_module, folder))


def record(trainer: Trainer, task: LanguageModelling, folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    data, model = task.data, task.outline
    path = folder / "run.json"
    started = read_json(path)["started"] if path.exists() and trainer.global_step else None
    clock = next(c for c in trainer.callbacks if isinstance(c, MetricsLog))  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "format": 1,
        "name": folder.name,
        "family": model.config.family,
        "started": started or datetime.now(UTC).isoformat(timespec="seconds"),
        "model": describe_model(task.architecture),
        "parameters": model.parameter_counts(),
        "flops_per_token": model.flops_per_token(data.context),
        "data": {
            "path": str(data.path),
            **data.identity(),
            "vocab_size": data.manifest.vocab_size,
            "train_tokens": data.train_tokens,
            "epochs": data.epochs_at(trainer.max_steps),
            "sources": data.manifest.sources,
        },
        "total_tokens": data.tokens_at(trainer.max_steps),
        "environment": environment() | {
            "precision": str(trainer.precision),
            "matmul_peak_flops": clock.peak_flops,
            "world_size": trainer.world_size,
        },
        "code": {"version": importlib.metadata.version("pretraining-pipeline"), "commit": commit()},
    }  # fmt: skip


def environment() -> dict[str, Any]:
    """The software and the processor."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "deepspeed")}
    return {"python": platform.python_version(), **versions, "processor": cpu_name(), "cores": os.cpu_count()}


def commit() -> str | None:
    """The commit of the code that runs, or None where it does not run from a git checkout or a submission's copy of one."""
    here = Path(__file__).parent
    copied = here.parents[2] / "commit"  # RUN/submission/commit, beside the folder `code`
    if here.parents[1].name == "code" and copied.is_file():
        return copied.read_text(encoding="utf-8").strip() or None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
