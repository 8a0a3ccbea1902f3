"""Units of work: the pieces of a stage that know nothing of each other. What one writes is found again by what went into it.

A unit fills a folder under a temporary name, which is renamed when it is whole and synced; so a process that is killed leaves nothing
under a final name, and two that do the same unit do no harm. Who does which unit, and in how many processes, changes no byte.
"""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import fingerprint, read_json, sha256_file, sync, write_json

FOLDER = ".units"
MARKER = "unit.json"
DIGESTS = "digests"
"""In what a unit's call returns: SHA-256 of files, by their paths, where it knows them. Not part of the record."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """One piece of work, which can be sent to another process."""

    name: str
    """What it reads, for people."""
    call: Callable[..., Record]
    """Fills a folder that is given to it; returns what is to be known without reading the files, as JSON."""
    inputs: Any
    """JSON that changes when what it reads changes."""
    bytes: int = 0
    """How much it reads, for rates and for whether processes are worth their start."""
    wide: bool = False
    """Divides its work over processes itself: `call` takes their number too."""
    hashed: bool = True
    """Whether anybody asks for the digests of its files. What it writes has a name in `Output.key` anyway."""


@dataclass(frozen=True)
class Phase:
    """Units that may be done in any order, after those of the phase before."""

    name: str
    """Also its folder below `.units`."""
    version: int
    """Raised when the code changes what units write."""
    settings: Any
    """JSON: every setting on which the results depend."""
    units: Sequence[Unit]
    least_bytes: int = 16 * 2**20
    """Processes take a second or two to start: what reads fewer bytes in all is done sooner without them."""
    threaded: bool = False
    """Whether a unit keeps the cores busy by itself: processes that have been started before are then worth no more than new ones."""
    scratch: bool = False
    """Whether what they write is of no use once the stage is complete."""
    alone: bool = False
    """Of one unit that sees everything: not worth an array of jobs."""

    def key(self, unit: Unit) -> str:
        return fingerprint([self.name, self.version, self.settings, unit.inputs])


@dataclass(frozen=True)
class Output:
    """What a unit has written."""

    folder: Path
    record: Record
    files: Mapping[str, tuple[int, str]] = field(repr=False)
    """Bytes and SHA-256 of each file, by its path in the folder; no digests where the unit is not `hashed`."""

    @classmethod
    def read(cls, folder: Path) -> "Output | None":
        """What a finished unit has written; None where it is not finished, or a file is missing or has another size."""
        if not (folder / MARKER).is_file():
            return None
        marker = read_json(folder / MARKER)
        files = {name: (size, digest) for name, (size, digest) in marker["files"].items()}
        for name, (size, _) in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                return None
        return cls(folder, marker["record"], files)

    @property
    def key(self) -> str:
        """What it was made of and how: equal for equal content."""
        return self.folder.name

    def digest(self, name: str) -> str:
        return self.files[name][1]


Fill = Callable[[Path], Record]
Steps = Generator[Phase, list[Output], Fill]
"""A stage as a coroutine: it yields its phases, is sent what their units wrote, in order, and returns what fills its folder.

It may be begun again in another process at any time, so between phases it does nothing but put together what is small."""


def at_once(fill: Fill) -> Steps:
    """A stage without units."""
    return fill
    yield  # Which makes it a generator.


@dataclass(frozen=True)
class Store:
    """Where finished units lie."""

    folder: Path

    def place(self, phase: Phase, unit: Unit) -> Path:
        return self.folder / phase.name / phase.key(unit)

    def find(self, phase: Phase) -> list[Output | None]:
        """What is there of each unit."""
        return [Output.read(self.place(phase, unit)) for unit in phase.units]

    def tidy(self, phase: Phase) -> None:
        """Remove what this phase no longer asks for: units of other settings and inputs, and leftovers of killed processes."""
        keep = set() if phase.scratch else {phase.key(unit) for unit in phase.units}
        folder = self.folder / phase.name
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.name not in keep:
                shutil.rmtree(entry, ignore_errors=True)


def perform(unit: Unit, target: Path, workers: int = 1) -> None:
    """Do a unit; nothing of it is left where it raises."""
    partial = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        record = unit.call(partial, workers) if unit.wide else unit.call(partial)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        known = record.pop(DIGESTS, {})
        files = {}
        for path in paths:
            name = path.relative_to(partial).as_posix()
            files[name] = path.stat().st_size, (known.get(name) or sha256_file(path)) if unit.hashed else ""
        for path in paths:
            sync(path)
        write_json(partial / MARKER, {"record": record, "files": files})
        if target.exists() and Output.read(target) is None:
            shutil.rmtree(target)
        try:
            partial.rename(target)
        except OSError:
            # Another process has done the same unit meanwhile.
            if Output.read(target) is None:
                raise
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def total(records: Iterable[Mapping[str, Any]]) -> Record:
    """Sums of numbers, joined lists and sums of what is nested, by name."""
    result: Record = {}
    for record in records:
        for name, value in record.items():
            if name not in result:
                result[name] = total([value]) if isinstance(value, Mapping) else value
            elif isinstance(value, Mapping):
                result[name] = total([result[name], value])
            else:
                result[name] = result[name] + value
    return result
