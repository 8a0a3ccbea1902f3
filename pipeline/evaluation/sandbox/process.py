"""The process that watches over a program: it takes a job, puts up the walls, runs the program in a child and tells how that ended."""

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import types
from collections.abc import Iterator

from pipeline.evaluation.sandbox import namespaces
from pipeline.evaluation.sandbox.refusals import Hook, Refused, refuse_network, refuse_what_namespaces_would
from pipeline.evaluation.sandbox.system_calls import end_with_parent, forbid_network_and_processes, gain_nothing

MEBIBYTE = 2**20
# Left above the program's memory so that its end can be told.
MEMORY_FOR_THE_VERDICT = 64 * MEBIBYTE
LONGEST_DETAIL = 300
POLL_SECONDS = 0.005


def main() -> None:
    """Read a job (JSON) from stdin and write [verdict, detail] to stdout."""
    job = json.loads(sys.stdin.buffer.read())
    try:
        verdict = supervise(job)
    except OSError as error:
        verdict = ["no walls", f"{type(error).__name__}: {error}"]
    print(json.dumps(verdict), flush=True)


def supervise(job: dict) -> list[str]:
    """Put up the outer walls, run the program in a child and say how that ended; all that it started is dead when this returns.

    Raises:
        OSError: the kernel does not allow these walls.
    """
    if job["walls"] == "namespaces":
        namespaces.enter(job["folder"], job["limits"]["file_megabytes"])
    else:
        os.chdir(job["folder"])
    # A new user loses this, so it is said when that is settled: whoever started this takes it along.
    end_with_parent(signal.SIGKILL)
    seconds, secret = job["limits"]["seconds"], os.urandom(16).hex()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        attend(job, writing, secret)
    os.close(writing)
    os.set_blocking(reading, False)
    deadline = time.monotonic() + seconds
    ended = 0
    while not ended and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        ended, status, usage = os.wait4(child, os.WNOHANG)
    # The first process of a process namespace takes all others with it, whatever their group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        # It may have been killed before it had a group of its own.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return ["timed out", f"not done after {seconds:g} s"]
    with contextlib.suppress(BlockingIOError, ValueError, TypeError):
        told, verdict, detail = json.loads(os.read(reading, 65536))
        if told == secret:
            return [verdict, detail]
    if not os.WIFSIGNALED(status):
        return ["failed", f"it ended before its tests did, with exit code {os.WEXITSTATUS(status)}"]
    number = os.WTERMSIG(status)
    # The kernel counts time for the limit in whole ticks, for its report exactly: on a busy machine they are far apart.
    if number == signal.SIGXCPU or usage.ru_utime + usage.ru_stime > job["limits"]["cpu_seconds"] / 2:
        return ["timed out", f"it used {job['limits']['cpu_seconds']:g} s of processor time"]
    if number == signal.SIGKILL:
        return ["out of memory", "the kernel killed it"]
    return ["failed", f"it was killed by {signal.Signals(number).name}"]


def attend(job: dict, report: int, secret: str) -> None:
    """The child: limit this process, run program and tests, report, and end without the interpreter's farewell."""
    own, write, leave, dumps = os.getpid(), os.write, os._exit, json.dumps
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.closerange(3, report)
        os.closerange(report + 1, 256)
        end_with_parent(signal.SIGKILL)
        limit(job["limits"])
        gain_nothing()
        sys.addaudithook(last_walls(job))
        verdict, detail = run(job["program"], job["tests"])
    except BaseException as error:
        verdict, detail = "failed", f"{type(error).__name__}: {error}"
    # A process that the program forked comes here too.
    if os.getpid() == own:
        write(report, dumps([secret, verdict, detail[:LONGEST_DETAIL]]).encode())
    leave(0)


def last_walls(job: dict) -> Hook:
    """Those that the child itself puts up; the hook that is returned comes last, for it refuses what they need."""
    if job["walls"] == "namespaces":
        processes = job["limits"]["processes"]
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
        return refuse_network(job["folder"])
    if job["walls"] == "filter":
        forbid_network_and_processes()
    return refuse_what_namespaces_would(job["folder"])


def run(program: str, tests: str) -> tuple[str, str]:
    """Execute tests after a program, in one module."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        for name, source in (("program.py", program), ("tests.py", tests)):
            exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        return "passed", ""
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):
            most = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        causes = list(chain(error))
        if any(isinstance(cause, Refused) for cause in causes):
            refusal = next(cause for cause in causes if isinstance(cause, Refused))
            return "refused", str(refusal)
        if any(isinstance(cause, MemoryError) for cause in causes):
            return "out of memory", "MemoryError"
        return "failed", described(error, {"program.py": program, "tests.py": tests})


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors that led to it."""
    seen = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__ or getattr(error, "reason", None)


def described(error: BaseException, sources: dict[str, str]) -> str:
    """The last line of a traceback, with the source line that it is about."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SystemExit):
        text = f"it ended before its tests did ({text})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in sources]
    if not frames or frames[-1].lineno is None:
        return text
    line = sources[frames[-1].filename].splitlines()[frames[-1].lineno - 1].strip()
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno}: {line})"


def limit(limits: dict) -> None:
    memory, cpu = limits["memory_megabytes"] * MEBIBYTE, max(1, int(-(-limits["cpu_seconds"] // 1)))
    file = limits["file_megabytes"] * MEBIBYTE
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + MEMORY_FOR_THE_VERDICT))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
