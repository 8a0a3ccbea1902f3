"""Where metrics go: always a CSV in the run directory, and wandb, offline where there is no account."""

import csv
import io
import netrc
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from data_prep.files import write_text
from pipeline.step_records import read_rows
from pipeline.wandb_files import last_row


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

    def logger(self, run_directory: Path, known_id: str | None = None) -> "WandbLog | None":
        """The logger of this run; a continued run goes on under the same id.

        Args:
            known_id: the id in the checkpoint that the run goes on from, for a run directory that came without it.
        """
        mode = self.resolved_mode()
        if mode == "disabled":
            return None
        os.environ.setdefault("WANDB_SILENT", "true")
        logger = WandbLog(
            name=self.name or run_directory.name, save_dir=run_directory, id=run_id(run_directory, known_id), resume="allow",
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
def run_id(run_directory: Path, known_id: str | None = None) -> str:
    """The id under which wandb knows this run, made once and kept in the run directory."""
    path = run_directory / "wandb-id"
    if not path.exists():
        write_text(path, (known_id or uuid.uuid4().hex[:12]) + "\n")
    return path.read_text().strip()


class WandbLog(WandbLogger):
    """One wandb run through all attempts, whose steps are the optimizer's and only ever grow.

    wandb cannot take a step twice. Where an attempt goes back to a checkpoint, the steps that wandb has already are not sent
    again: at the same layout they are the same, bit for bit. Those up to the checkpoint that a kill kept from it are sent from
    metrics.csv. The first new row says where this attempt began: `restored_from`, a step, and `attempt`, counted from 1.
    """

    had = -1
    """The last step that wandb has from earlier attempts."""
    attempts = 0
    """Counted from 1; 0 before the first of this process."""
    keys: frozenset[str] = frozenset()
    """What it has of that step."""
    first_row: Mapping[str, float] = {}
    """What is added to the next row."""

    @property
    def folder(self) -> Path:
        return Path(str(self.save_dir))

    @property
    def progress_file(self) -> Path:
        """Holds the last step that was handed to wandb, and the number of attempts; where its own files are gone, this is believed."""
        return self.folder / "wandb-progress"

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Begin an attempt after `step` optimizer steps; metrics.csv holds their rows."""
        last, attempts = self.read_progress()
        # A process that goes back knows what it has sent; what one before it has sent may be lost with it.
        self.keys = frozenset()
        if self.attempts == 0 and (found := self.received(self.experiment)):
            last, self.keys = found
        self.had = last
        self.write_progress(last, attempts + 1)
        missed = [row for row in read_rows(self.folder / "metrics.csv") if last < int(row["step"]) <= step]
        for row in missed:
            self.send({name: float(value) for name, value in row.items() if name != "step" and value}, int(row["step"]))
        if attempts:
            self.first_row = {"restored_from": step, "attempt": attempts + 1}

    def received(self, run: Any) -> tuple[int, frozenset[str]] | None:
        """The last step that wandb has, and what of it; None where nothing here tells."""
        own = Path(str(getattr(run, "dir", ""))).parent
        folders = sorted(path for path in (self.folder / "wandb").glob("offline-run-*") if path != own)
        found = next((last for path in reversed(folders) if (last := last_row(path))), None)
        if getattr(run, "resumed", False):
            of_server = int(getattr(run, "starting_step", 0)) - 1
            if found is None or of_server > found[0]:
                return of_server, frozenset()
        return found

    def read_progress(self) -> tuple[int, int]:
        try:
            last, attempts = map(int, self.progress_file.read_text().split())
        except (OSError, ValueError):
            return -1, 0
        return last, attempts

    def write_progress(self, last: int, attempts: int | None = None) -> None:
        """In place and of fixed length: after a kill it is the number before or the one after."""
        if attempts is not None:
            self.attempts = attempts
            write_text(self.progress_file, "\n")
        with self.progress_file.open("r+b", buffering=0) as file:
            file.write(f"{last:12d} {self.attempts:6d}\n".encode())

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        if step > self.had:
            self.send({**self.first_row, **metrics}, step)
            self.first_row = {}
        elif step == self.had and self.keys:
            # A validation that was made up for after its step was sent: with the next row.
            late = {
                name: value
                for name, value in metrics.items()
                if name not in self.keys and name.startswith(("val/", "few_shot/"))
            }
            self.first_row = {**self.first_row, **late}

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)
        self.write_progress(step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if status != "success" and (hint := how_to_upload(self.folder)):
            print(hint, flush=True)


def log_table(
    run_directory: Path,
    name: str,
    columns: list[str],
    rows: list[list[Any]],
    summary: Mapping[str, float] | None = None,
) -> str | None:
    """Add a table, and values for the summary, to a finished run's own wandb run: under its id, online only if it was.

    They go into the run's summary, where wandb's workspaces look for a table. A row of history would need a step, and would stand
    in the way of those that a continued training has yet to log.

    Args:
        name: what wandb calls the table; one of that name makes way.
        rows: numbers, text and None by column.

    Returns:
        How to upload what was kept offline, as a sentence; None where nothing was, as for a run that has no wandb.
    """
    settings = tracked_with(run_directory)
    mode = settings.resolved_mode()
    if mode == "disabled" or not (run_directory / "wandb-id").exists():
        return None
    folders = [path for pattern in ("run-*", "offline-run-*") for path in (run_directory / "wandb").glob(pattern)]
    # Named by the time of their start.
    last = max(folders, key=lambda path: path.name.removeprefix("offline-"), default=None)
    if last is not None and last.name.startswith("offline-"):
        mode = "offline"
    import wandb

    def start(mode: str) -> Any:
        return wandb.init(
            project=settings.project, entity=settings.entity, name=settings.name or run_directory.name,
            id=run_id(run_directory), resume="allow", dir=str(run_directory), mode=mode,  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, reinit="create_new", x_disable_stats=True),
        )  # fmt: skip

    try:
        run = start(mode)
    except wandb.Error:  # No network, or an account that is gone: the scores are kept for a later sync.
        mode = "offline"
        run = start(mode)
    table = wandb.Table(columns=list[str | int](columns), data=list[Any](rows), allow_mixed_types=True)
    # Of several offline parts wandb keeps the last one's summary, so this one too ends with the run's last values.
    known = last_values(run_directory) if mode == "offline" else {}
    run.summary.update({**known, **(summary or {}), name: table})
    run.finish()
    return how_to_upload(run_directory) if mode == "offline" else None


def last_values(run_directory: Path) -> dict[str, float]:
    """The last value of each column of a run's metrics.csv."""
    rows = read_rows(run_directory / "metrics.csv")
    return {name: float(value) for row in rows for name, value in row.items() if value and name != "step"}


def tracked_with(run_directory: Path) -> Wandb:
    """The settings of a run's tracking, as its config.yaml has them; the defaults where it tells none."""
    try:
        config = yaml.safe_load((run_directory / "config.yaml").read_text(encoding="utf-8"))
        return Wandb(**(config.get("wandb") or {}))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return Wandb()


def how_to_upload(run_directory: Path) -> str | None:
    """The command that uploads what wandb kept offline, of all attempts, as a sentence; None where there is nothing."""
    if not any((run_directory / "wandb").glob("offline-run-*")):
        return None
    return f"wandb kept this run offline; to upload it: wandb sync {run_directory / 'wandb'}/offline-run-*"


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
