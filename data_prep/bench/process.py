"""A run in a process of its own, as a user starts it: nothing that it needs is loaded or remembered, and its memory is its own.

`python -m data_prep.bench.process FOLDER` is that process.
"""

import importlib
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError, read_json, write_json
from data_prep.process_memory import peak_resident_bytes

if TYPE_CHECKING:
    from data_prep.configuration import DataConfig

WANTED, RESULT = "wanted.pickle", "result.json"
IMPORTED_LATE = ("gigatoken", "awkward", "pandas")


@dataclass(frozen=True)
class Done:
    """A stage that was brought up to date; no seconds where it was complete before."""

    seconds: float | None
    record: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run took."""

    seconds: float
    """Of the run; the interpreter's start and imports are in `start_seconds`."""
    start_seconds: float
    worker_peak_bytes: int
    """The most memory of a process that did units of work."""
    main_peak_bytes: int
    """The most memory of the process that was started."""
    stages: dict[str, Done]


def run_apart(config: "DataConfig", last: str, folder: Path) -> Outcome:
    """Bring a configuration up to date to its verb `last`. Raises InputError with the reason where that fails."""
    (folder / WANTED).write_bytes(pickle.dumps((config, last)))
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "data_prep.bench.process", str(folder)]
    began = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()] or [f"status {ended.returncode}"]
        raise InputError(f"The run that was to be measured failed: {lines[-1]}")
    result = read_json(folder / RESULT)
    stages = {name: Done(**stage) for name, stage in result.pop("stages").items()}
    return Outcome(**result, start_seconds=wall - result["seconds"], stages=stages)


def main(folder: Path) -> int:
    # Not above: workers import this file too, as they do that of a command line, which is as light.
    from rich.console import Console

    from data_prep.run import run

    config, last = pickle.loads((folder / WANTED).read_bytes())
    # Imports are part of the start wherever they stand, as they are for the sides beside it.
    for name in IMPORTED_LATE:
        with suppress(ImportError):
            importlib.import_module(name)
    began = time.perf_counter()
    try:
        prepared = run(config, last, Console(quiet=True))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    result = {
        "seconds": time.perf_counter() - began,
        "worker_peak_bytes": prepared.peak_bytes,
        "main_peak_bytes": peak_resident_bytes(),
        "stages": {name: asdict(Done(stage.seconds, stage.record)) for name, stage in prepared.stages.items()},
    }
    write_json(folder / RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
