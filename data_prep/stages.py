"""Stages: units of work that are done once. A stage fills one folder, again only when what it depends on has changed.

The folder is filled under a temporary name and renamed when complete, with `stage.json` inside. So a folder under its
final name is whole, whenever the machine stopped; what is left under a temporary name is thrown away by the next run.
"""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.files import InputError, fingerprint, read_json, sha256_file, sync, write_json

MARKER = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One unit of work: its name is also its folder below the output folder."""

    name: str
    version: int
    """Raised when the code changes what it writes."""
    settings: Any
    """JSON: every setting on which the result depends."""
    inputs: Any
    """JSON: fingerprints of everything that is read."""
    run: Callable[[Path], dict[str, Any]]
    """Fills a folder; returns a JSON record for later stages and for the terminal."""
    columns: tuple[str, ...] = field(default=("documents", "text_bytes"), kw_only=True)
    """Which numbers of the record the terminal shows."""

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.name, self.version, self.settings, self.inputs])


@dataclass(frozen=True)
class Finished:
    """A stage that is complete on disk."""

    folder: Path
    fingerprint: str
    record: dict[str, Any]
    output: str
    """Hash of all that it wrote. Later stages depend on this, so an input that was only touched ends the chain here."""

    @classmethod
    def read(cls, folder: Path) -> "Finished | None":
        """The finished stage in a folder; None where there is none or a file of it is missing or has another size."""
        if not (folder / MARKER).is_file():
            return None
        marker = read_json(folder / MARKER)
        for name, size in marker["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                return None
        return cls(folder, marker["fingerprint"], marker["record"], marker["output"])


def perform(stage: Stage, output: Path, console: Console) -> Finished:
    """Bring a stage up to date and print one line about it."""
    folder = output / stage.name
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    finished = Finished.read(folder)
    if finished and finished.fingerprint == stage.fingerprint:
        console.print(f"{stage.name:<24} unchanged  {summary(stage, finished.record)}", highlight=False)
        return finished
    started = time.perf_counter()
    partial.mkdir(parents=True)
    try:
        with console.status(f"{stage.name} ..."):
            record = stage.run(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        digest = hashlib.sha256("".join(f"{name} {sha256_file(partial / name)}\n" for name in sizes).encode())
        marker = {
            "stage": stage.name,
            "version": stage.version,
            "fingerprint": stage.fingerprint,
            "settings": stage.settings,
            "inputs": stage.inputs,
            "record": record,
            "output": digest.hexdigest(),
            "files": sizes,
        }
        write_json(partial / MARKER, marker)
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    seconds = time.perf_counter() - started
    console.print(f"{stage.name:<24} {seconds:7.1f} s  {summary(stage, record)}", highlight=False)
    return Finished(folder, stage.fingerprint, record, digest.hexdigest())


def summary(stage: Stage, record: dict[str, Any]) -> str:
    parts = []
    for column in stage.columns:
        value, name = record[column], column.replace("_", " ")
        parts.append(f"{value / 1e6:9.2f} MB" if column.endswith("_bytes") else f"{value:>10,} {name}")
    return "  ".join(parts)


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Keep a second run out of the same output folder. The lock goes with the process, however it ends."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another run is writing to {output}: wait for it or give another `output`.") from None
        yield
