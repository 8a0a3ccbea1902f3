"""Runs programs that a model wrote, each in a process of its own (sandbox/), and estimates pass@k from the verdicts."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from data_prep.files import InputError

# The bare interpreter knows no project, and what runs in it shall not find one either.
WATCHER = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.evaluation.sandbox.process import main; "
    "del sys.path[0], sys.argv[1:]; main()"
)
PROJECT = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# What the sandbox takes beyond a program's own time, on a busy machine.
GRACE_SECONDS = 20

Verdict = Literal["passed", "failed", "timed out", "out of memory", "refused"]
Walls = Literal["namespaces", "filter", "audit"]

WALLS: dict[Walls, str] = {
    "namespaces": "namespaces of the kernel: no network device, no view of other processes or of files but the interpreter's, "
    "read-only, and an empty working folder in memory",
    "filter": "a filter of system calls that takes the network and new processes away, and an audit hook of the interpreter that "
    "refuses files outside the working folder, for the kernel allows no namespaces here",
    "audit": "an audit hook of the interpreter, for the kernel allows neither namespaces nor filters here: it refuses the network, new "
    "processes, foreign code and files outside the working folder, but is no wall against a program that sets out to get around it",
}


@dataclass(frozen=True)
class Limits:
    """What one program may use; its own and its children's time counts from the start of the program.

    `file_megabytes` bounds each file and, with namespaces, the whole working folder; `memory_megabytes` and `cpu_seconds` bound
    each process, and `processes` their number, threads included (without namespaces there is only one process).
    """

    seconds: float = 6.0
    cpu_seconds: float = 5.0
    memory_megabytes: int = 1024
    file_megabytes: int = 16
    processes: int = 16

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value <= 0:
                raise InputError(f"The limit {name} of generated programs is {value}: it has to be above 0.")


@dataclass(frozen=True)
class Outcome:
    """How a program ended; `detail` is the last line of its traceback, or says what stopped it."""

    verdict: Verdict
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def execute(program: str, tests: str, limits: Limits | None = None, walls: Walls | None = None) -> Outcome:
    """Run a program and then its tests in one module; it passes where both run to their end.

    Args:
        walls: what keeps the program in; None for the best that this machine has.
    """
    told = start(program, tests, limits or Limits(), walls or available_walls())
    if told[0] == "no walls":
        raise InputError(
            f"The sandbox for generated programs could not be set up ({told[1]}): leave the tasks that run code out of --tasks."
        )
    verdict, detail = told
    return Outcome(cast(Verdict, verdict), detail)


def execute_all(jobs: Sequence[tuple[str, str]], limits: Limits | None = None) -> list[Outcome]:
    """Outcomes of several programs with their tests, as many at once as there are processors for."""
    if not jobs:
        return []
    with ThreadPoolExecutor(min(len(jobs), processors())) as pool:
        return list(pool.map(lambda job: execute(job[0], job[1], limits), jobs))


@functools.cache
def available_walls() -> Walls:
    """The strongest walls behind which a trivial program passes.

    Raises:
        InputError: it passes behind none.
    """
    told = [""]
    for walls in WALLS:
        told = start("import hashlib, heapq, zlib", "", Limits(), walls)
        if told[0] == "passed":
            return walls
    raise InputError(
        f"Generated programs cannot be run safely here ({': '.join(filter(None, told))}), for that needs Linux: "
        "leave the tasks that run code out of --tasks."
    )


def start(program: str, tests: str, limits: Limits, walls: Walls) -> list[str]:
    """The sandbox's verdict and detail. Nothing of this process reaches it but the job: no environment, no open file."""
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
        job = {
            "program": program,
            "tests": tests,
            "folder": folder,
            "walls": walls,
            "limits": dataclasses.asdict(limits),
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", WATCHER, str(PROJECT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**ENVIRONMENT, "TMPDIR": folder},
            cwd=folder,
            start_new_session=True,
        )
        try:
            # A lone surrogate, which a decoder can write, is escaped here and fails to compile there.
            said, _ = process.communicate(json.dumps(job).encode(), timeout=limits.seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return ["timed out", f"not done after {limits.seconds:g} s"]
        finally:
            end_group(process)
        try:
            return json.loads(said)
        except ValueError:
            return ["failed", "the process that watched over it ended first"]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a session; without its leader its number could be another's."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k programs passes: 1 - C(n-c, k) / C(n, k), as a product of ratios.

    Chen et al. 2021, equation 1. Raises ValueError for a k beyond the number of samples.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} needs at least {k} programs of which 0 or more pass, not {samples} with {passed} passed"
        )
    failed = 1.0
    for number in range(samples - passed + 1, samples + 1):
        failed *= max(0.0, 1.0 - k / number)
    return 1.0 - failed
