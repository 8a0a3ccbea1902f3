"""Stages: each fills one folder, again only when what it depends on has changed.

The work of a stage is done in units; the folder is put together from what they wrote, under a temporary name, and renamed when
complete, with `stage.json` inside. So a folder under its final name is whole, whenever the machine stopped; what is left under a
temporary name is thrown away by the next run.
"""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from data_prep import units
from data_prep.files import InputError, fingerprint, read_json, sha256_file, sync, write_json
from data_prep.progress import progress
from data_prep.units import Fill, Output, Phase, Steps, Store
from data_prep.workers import Job, UnitsFailed, Workers

MARKER = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One step from sources to shards: its name is also its folder below the output folder."""

    name: str
    version: int
    """Raised when the code changes what it writes."""
    settings: Any
    """JSON: every setting on which the result depends."""
    inputs: Any
    """JSON: fingerprints of everything that is read."""
    steps: Callable[[], Steps]
    """Its work, begun anew. What fills the folder returns a JSON record for later stages and for the terminal."""
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

    hashes: dict[str, str] = field(repr=False)
    """SHA-256 of each file, by its path in the folder."""
    seconds: float | None = None
    """How long it has just taken; None where it was complete before."""

    @classmethod
    def read(cls, folder: Path) -> "Finished | None":
        """The finished stage in a folder; None where there is none or a file of it is missing or has another size."""
        if not (folder / MARKER).is_file():
            return None
        marker = read_json(folder / MARKER)
        for name, size in marker["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                return None
        if "hashes" not in marker:  # Written by an earlier version.
            return None
        return cls(folder, marker["fingerprint"], marker["record"], marker["output"], marker["hashes"])

    def digest(self, path: Path) -> str:
        """SHA-256 of one of its files."""
        return self.hashes[path.relative_to(self.folder).as_posix()]


def perform(stage: Stage, output: Path, workers: Workers, console: Console) -> Finished:
    """Bring a stage up to date and print one line about it.

    Raises:
        UnitsFailed: some of its units could not be done; all others are, and are not done again by the next run.
    """
    folder = output / stage.name
    finished = Finished.read(folder)
    if finished and finished.fingerprint == stage.fingerprint:
        console.print(f"{stage.name:<24} unchanged  {summary(stage, finished.record)}", highlight=False)
        return finished
    started = time.perf_counter()
    store = store_of(stage, output)
    outputs: list[Output] = []
    phases: list[Phase] = []
    reused = 0

    def do(phase: Phase) -> list[Output]:
        nonlocal reused
        phases.append(phase)
        reused += sum(store.place(phase, unit).is_dir() for unit in phase.units)
        done = do_units(stage, phase, store, workers, console)
        outputs.extend(done)
        return done

    fill = follow(stage.steps(), do)
    with console.status(f"{stage.name} ..."):
        finished = put_together(stage, folder, fill, outputs, lambda: [store.tidy(phase) for phase in phases])
    seconds = time.perf_counter() - started
    note = f"  ({reused} of {len(outputs)} units reused)" if reused else ""
    console.print(f"{stage.name:<24} {seconds:7.1f} s  {summary(stage, finished.record)}{note}", highlight=False)
    return replace(finished, seconds=seconds)


def follow(steps: Steps, do: Callable[[Phase], list[Output]]) -> Fill:
    """Do phase after phase; returns what fills the stage's folder."""
    try:
        phase = next(steps)
        while True:
            phase = steps.send(do(phase))
    except StopIteration as end:
        return end.value


def store_of(stage: Stage, output: Path) -> Store:
    """Where the units of a stage lie."""
    return Store(output / units.FOLDER / stage.name)


def do_units(stage: Stage, phase: Phase, store: Store, workers: Workers, console: Console) -> list[Output]:
    """Do those units of a phase that are missing; returns what all of them have written."""
    found = store.find(phase)
    jobs = [
        Job(unit, store.place(phase, unit)) for unit, output in zip(phase.units, found, strict=True) if output is None
    ]
    if jobs:
        name = stage.name if phase.name in stage.name else f"{stage.name}, {phase.name}"
        sizes = [unit.bytes for unit in phase.units]
        with progress(name, sizes, [job.unit.bytes for job in jobs], console) as shown:
            failures = workers.run(jobs, lambda job: shown.add(job.unit.bytes), phase.least_bytes)
        if failures:
            write_failures(failures, store)
            raise UnitsFailed(stage.name, failures)
        found = store.find(phase)
    return [output for output in found if output]


def write_failures(failures: Iterable[Any], store: Store) -> None:
    """Keep what a programmer wants to see of units that failed by more than their input."""
    for number, failure in enumerate(failures):
        if failure.trace:
            store.folder.mkdir(parents=True, exist_ok=True)
            (store.folder / f"failed-{number}.txt").write_text(f"{failure.unit.name}\n\n{failure.trace}")


def put_together(
    stage: Stage, folder: Path, fill: Fill, outputs: Iterable[Output], tidy: Callable[[], Any]
) -> Finished:
    """Fill a stage's folder, with what its units wrote and the rest, tidy up, and give it its name."""
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        record = fill(partial)
        known = {
            inode(output.folder / name): digest for output in outputs for name, (_, digest) in output.files.items()
        }
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        hashes = {
            path.relative_to(partial).as_posix(): known.get(inode(path)) or sha256_file(path)
            for path in paths
            if not path.name.startswith(".")
        }
        digest = hashlib.sha256("".join(f"{name} {each}\n" for name, each in hashes.items()).encode()).hexdigest()
        marker = {
            "stage": stage.name,
            "version": stage.version,
            "fingerprint": stage.fingerprint,
            "settings": stage.settings,
            "inputs": stage.inputs,
            "record": record,
            "output": digest,
            "files": {name: (partial / name).stat().st_size for name in hashes},
            "hashes": hashes,
        }
        write_json(partial / MARKER, marker)
        # Not afterwards: nobody would come back for it.
        tidy()
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return Finished(folder, stage.fingerprint, record, digest, hashes)


def inode(path: Path) -> tuple[int, int]:
    """What two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def fill_folder(steps: Steps, target: Path, workers: Workers) -> dict[str, Any]:
    """Do all that a stage consists of and fill a folder with it, without a stage around it."""
    console = Console(quiet=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}") as scratch:
        stage = Stage(target.name, 1, None, None, lambda: steps)
        fill = follow(steps, lambda phase: do_units(stage, phase, Store(Path(scratch)), workers, console))
        target.mkdir(parents=True, exist_ok=True)
        return fill(target)


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
