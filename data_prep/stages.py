"""Stages: each fills one folder, again only when what it depends on has changed.

The work of a stage is done in units; the folder is put together from what they wrote, under a temporary name, and renamed when
complete, with `stage.json` inside. So a folder under its final name is whole, whenever the machine stopped; what is left under a
temporary name is thrown away by the next run.
"""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from data_prep.workers import Failure, Job, UnitsFailed, Workers

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


def current(stage: Stage, output: Path) -> Finished | None:
    """The stage, where it is up to date."""
    finished = Finished.read(output / stage.name)
    return finished if finished and finished.fingerprint == stage.fingerprint else None


def perform(stages: Sequence[Stage], output: Path, workers: Workers, console: Console) -> list[Finished | UnitsFailed]:
    """Bring stages that know nothing of each other up to date, their units side by side, and print a line about each.

    Returns:
        For each the stage, or the units of it that could not be done; all others are, and are not done again by the next run.
    """
    ways = [current(stage, output) or Course(stage, store_of(stage, output), stage.steps()) for stage in stages]
    run_courses([way for way in ways if isinstance(way, Course)], workers, console)
    ended: list[Finished | UnitsFailed] = []
    for stage, way in zip(stages, ways, strict=True):
        if isinstance(way, Finished):
            console.print(f"{stage.name:<24} unchanged  {summary(stage, way.record)}", highlight=False)
            ended.append(way)
        else:
            ended.append(way.failed or way.end(output, console))
    return ended


def run_courses(courses: Sequence["Course"], workers: Workers, console: Console) -> None:
    """Do all units of stages, phase by phase, those of different stages side by side."""
    while moving := [course for course in courses if course.phase]:
        asked = [Asked(course.stage.name, course.phase, course.store) for course in moving if course.phase]
        for course, done in zip(moving, do_units(asked, workers, console), strict=True):
            course.go_on(done)


class Course:
    """A stage on its way: the phase that it has come to, and in the end what fills its folder, or what failed."""

    def __init__(self, stage: Stage, store: Store, steps: Steps):
        self.stage, self.store, self._steps = stage, store, steps
        self.phase: Phase | None = None
        self.fill: Fill | None = None
        self.failed: UnitsFailed | None = None
        self._phases: list[Phase] = []
        self._outputs: list[Output] = []
        self._reused = 0
        self._seconds = 0.0
        self._step(None)

    def _step(self, outputs: list[Output] | None) -> None:
        began = time.perf_counter()
        try:
            self.phase = next(self._steps) if outputs is None else self._steps.send(outputs)
            self._phases.append(self.phase)
        except StopIteration as end:
            self.phase, self.fill = None, end.value
        self._seconds += time.perf_counter() - began

    def go_on(self, done: "Done") -> None:
        """To the next phase, or to the end."""
        self._seconds += done.seconds
        self._reused += done.reused
        try:
            outputs = done.whole()
        except UnitsFailed as failed:
            self.phase, self.failed = None, failed
            return
        self._outputs += outputs
        self._step(outputs)

    def end(self, output: Path, console: Console) -> Finished:
        """Put the folder together, and print a line about the stage."""
        assert self.fill is not None
        stage, began = self.stage, time.perf_counter()
        with console.status(f"{stage.name} ..."):
            finished = put_together(stage, output / stage.name, self.fill, self._outputs, self._tidy)
        seconds = self._seconds + time.perf_counter() - began
        note = f"  ({self._reused} of {len(self._outputs)} units reused)" if self._reused else ""
        console.print(f"{stage.name:<24} {seconds:7.1f} s  {summary(stage, finished.record)}{note}", highlight=False)
        return replace(finished, seconds=seconds)

    def _tidy(self) -> None:
        for phase in self._phases:
            self.store.tidy(phase)


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


@dataclass(frozen=True)
class Asked:
    """A phase of a stage that is to be done, and where its units lie."""

    stage: str
    phase: Phase
    store: Store

    @property
    def name(self) -> str:
        """For people."""
        return self.stage if self.phase.name in self.stage else f"{self.stage}, {self.phase.name}"

    def missing(self) -> list[Job]:
        found = zip(self.phase.units, self.store.find(self.phase), strict=True)
        return [Job(unit, self.store.place(self.phase, unit)) for unit, output in found if output is None]


@dataclass(frozen=True)
class Done:
    """What has become of a phase."""

    asked: Asked
    failures: list[Failure]
    reused: int
    """Units that were there before."""
    seconds: float
    """Of the time that all phases took together, a share as of the work."""

    def whole(self) -> list[Output]:
        """What the units have written. Raises UnitsFailed where some could not be done."""
        if self.failures:
            raise UnitsFailed(self.asked.stage, self.failures)
        return [output for output in self.asked.store.find(self.asked.phase) if output]


def do_units(asked: Sequence[Asked], workers: Workers, console: Console) -> list[Done]:
    """Do those units of some phases that are missing, all of them side by side."""
    began = time.perf_counter()
    jobs = [each.missing() for each in asked]
    owners = {id(job.unit): number for number, own in enumerate(jobs) for job in own}
    spent = [0.0] * len(asked)
    failures: list[list[Failure]] = [[] for _ in asked]
    if owners:
        name = asked[0].name if len(asked) == 1 else f"{asked[0].stage.partition('/')[0]} of {len(asked)} sources"
        sizes = [unit.bytes for each in asked for unit in each.phase.units]
        with progress(name, sizes, [job.unit.bytes for own in jobs for job in own], console) as shown:

            def finished(job: Job, seconds: float) -> None:
                spent[owners[id(job.unit)]] += seconds
                shown.add(job.unit.bytes)

            least = max(each.phase.least_bytes for each in asked)
            threaded = any(each.phase.threaded for each in asked)
            for failure in workers.run([job for own in jobs for job in own], finished, least, threaded):
                failures[owners[id(failure.unit)]].append(failure)
        for each, failed in zip(asked, failures, strict=True):
            write_failures(failed, each.store)
    seconds = time.perf_counter() - began
    work = sum(spent) or 1.0
    return [
        Done(each, failed, len(each.phase.units) - len(own), seconds * share / work)
        for each, own, failed, share in zip(asked, jobs, failures, spent, strict=True)
    ]


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
        store = Store(Path(scratch))
        fill = follow(steps, lambda phase: do_units([Asked(target.name, phase, store)], workers, console)[0].whole())
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
