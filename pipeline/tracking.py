"""Where metrics go: always a CSV in the run directory, and wandb, offline where there is no account."""

import csv
import io
import netrc
import os
import uuid
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from data_prep.files import write_text


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Tracking with Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an account (WANDB_API_KEY or a login), else offline; WANDB_MODE is obeyed. Never asks."""
    project: str = "pretraining-pipeline"
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team; the account's default when not given."""
    name: str | None = None
    """Name of the run; the run directory's when not given."""

    def resolved_mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if has_account() else "offline")

    def logger(self, run_directory: Path) -> WandbLogger | None:
        """The logger of this run; a continued run goes on under the same id."""
        mode = self.resolved_mode()
        if mode == "disabled":
            return None
        os.environ.setdefault("WANDB_SILENT", "true")
        logger = WandbLogger(
            name=self.name or run_directory.name, save_dir=run_directory, id=run_id(run_directory), resume="allow",
            project=self.project, entity=self.entity, mode=mode, log_model=False,
        )  # fmt: skip
        # Lightning hands on a setting that wandb has given up and warns of.
        logger._wandb_init.pop("anonymous", None)
        return logger


def has_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@rank_zero_only
def run_id(run_directory: Path) -> str:
    """The id under which wandb knows this run, made once and kept in the run directory."""
    path = run_directory / "wandb-id"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()


class CSVLog(Logger):
    """metrics.csv: one row a logged step, appended as it comes, with a column for every metric seen so far.

    A continued run drops the rows after the step it continues from, so no step stands twice.
    """

    def __init__(self, run_directory: str | Path):
        super().__init__()
        self.directory = Path(run_directory)
        self.path = self.directory / "metrics.csv"
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.directory)

    @property
    def log_dir(self) -> str:
        return str(self.directory)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's settings stand in its config.yaml and run.json."""

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Keep the rows up to `step`; 0 starts the file anew."""
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= step] if step else []
        self.columns = [name for name in rows[0] if name] if rows else []
        self.rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self.rewrite(read_rows(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if None not in row.values() and row.get("step", "").isdigit()]
