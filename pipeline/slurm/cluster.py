"""The client of Slurm's commands: what partitions there are, how jobs do, and jobs submitted, requeued, cancelled.

Slurm's own words are read from `scontrol -o` and `sinfo` with a format, which every version prints alike; accounting (sacct) is
asked only for what the controller has forgotten.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from data_prep.files import InputError
from data_prep.slurm_time import seconds_of
from pipeline.run_state import state_folder

FINAL = {
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
}  # fmt: skip
WORKING = {"idle", "mixed", "allocated", "completing", "reserved", "planned"}
"""States of a node that has jobs or may get them."""
SECONDS_TO_ANSWER = 60
BAD_NODES = "bad_nodes"


def available() -> bool:
    return shutil.which("sbatch") is not None


def ask(*words: str, refusal: str = "") -> str:
    """What one of Slurm's commands prints.

    Args:
        refusal: What could not be done, for the message where the command fails.

    Raises:
        InputError: Slurm is not here, does not answer, or says no.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except FileNotFoundError:
        raise InputError(
            f"{words[0]} is not on this machine: call this on a login node of a Slurm cluster (submit --dry-run works anywhere)"
        ) from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{words[0]} has had no answer for {SECONDS_TO_ANSWER} s: Slurm's controller may be down, so try again later"
        ) from None
    if done.returncode < 0:
        raise InputError(
            f"{refusal or words[0]}: {words[0]} was ended by {signal.Signals(-done.returncode).name} before its answer"
        )
    if done.returncode:
        reason = reason_in(done.stderr or done.stdout)
        if "configuration source" in reason:
            reason += (
                ", so this machine belongs to no cluster: call this on a login node (submit --dry-run works anywhere)"
            )
        raise InputError(f"{refusal or words[0]}: Slurm says: {reason}")
    return done.stdout


def reason_in(text: str) -> str:
    """The last thing that a command of Slurm complained of, without its own name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["nothing"]
    return re.sub(r"^(\w+: )?((error|fatal): )?", "", lines[-1])


# -- jobs


@dataclass(frozen=True)
class Job:
    """A job as the controller describes it."""

    id: str
    """As squeue writes it: 12, or 12_3 of an array."""
    number: str
    """The number that a job has for itself, also in an array; of one member it is the array's own, which Slurm takes to mean all."""
    name: str
    state: str
    reason: str
    nodes: str
    """Those it runs on, or ran on last; empty where it has none yet."""
    started: float | None
    """Or will start, as the scheduler expects."""
    ends: float | None
    """At the latest, or did end."""
    restarts: int
    exit_code: int
    output: str
    comment: str
    dependency: str
    excluded: str
    partition: str
    node_count: int

    @property
    def over(self) -> bool:
        return self.state in FINAL


def job_of(record: str) -> Job:
    """A job from one line of `scontrol show job -o`."""
    fields = dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)", record))

    def moment(name: str) -> float | None:
        try:
            return datetime.fromisoformat(fields.get(name, "")).timestamp()
        except ValueError:
            return None

    def given(name: str) -> str:
        value = fields.get(name, "").strip()
        return "" if value in ("(null)", "None", "N/A") else value

    member = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}" if "ArrayTaskId" in fields else fields["JobId"]
    return Job(
        id=member, number=fields["JobId"], name=given("JobName"), state=fields["JobState"], reason=given("Reason"), nodes=given("NodeList"),
        started=moment("StartTime"), ends=moment("EndTime"), restarts=int(fields.get("Restarts", 0)),
        exit_code=int(fields.get("ExitCode", "0:0").partition(":")[0]), output=given("StdOut"), comment=given("Comment"),
        dependency=given("Dependency"), excluded=given("ExcNodeList"),
        partition=given("Partition"), node_count=int(fields.get("NumNodes", "1").partition("-")[0]),
    )  # fmt: skip


def jobs(which: str | None = None) -> list[Job]:
    """All jobs that the controller knows, or one: the members of an array are jobs of their own."""
    words = ["scontrol", "show", "job", "-o", *([which] if which else [])]
    try:
        text = ask(*words)
    except InputError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [job_of(line) for line in text.splitlines() if line.startswith("JobId=")]


def job(job_id: str) -> Job | None:
    """A job, or None where the controller has forgotten it (some minutes after its end).

    Args:
        job_id: As squeue writes it, or SLURM_JOB_ID as the job has it.
    """
    found = jobs(job_id)
    return next((job for job in found if job_id in (job.id, job.number)), found[0] if found else None)


def job_state(job_id: str) -> str:
    """RUNNING, PENDING, COMPLETING, COMPLETED, ...; empty where nobody knows the job.

    COMPLETING is a job that is being cancelled, requeued or ended by its wall time, as long as one of its processes lives.
    """
    known = job(job_id)
    return known.state if known else accounted_state(job_id)


def accounted_state(job_id: str) -> str:
    """A job's state by the accounting database; empty where there is none."""
    try:
        lines = ask("sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State").split("\n")
    except InputError:
        return ""
    return lines[0].partition(" ")[0]


def remaining_seconds(job_id: str) -> float | None:
    """Until the job's wall time ends; None where it has no limit or is unknown."""
    known = job(job_id)
    return known.ends - time.time() if known and known.ends else None


def submit(script: Path, options: Sequence[str] = ()) -> str:
    """Queue a script; return the job's id.

    Raises:
        InputError: Slurm refuses it.
    """
    answer = ask("sbatch", "--parsable", *options, str(script), refusal=f"{script} was not accepted")
    return answer.strip().partition(";")[0]


def refuse_what_slurm_would(script: Path) -> None:
    """Show the controller a script without queueing it.

    Raises:
        InputError: it would not take it (an account, a quality of service, limits, nodes that do not exist).
    """
    ask("sbatch", "--test-only", str(script), refusal="The cluster would not take this job")


def cancel(job_ids: Sequence[str]) -> None:
    if job_ids:
        ask("scancel", *job_ids, refusal=f"{', '.join(job_ids)} could not be cancelled")


def requeue(job_id: str, exclude: Sequence[str] = ()) -> None:
    """End a running job and queue it again, under the same id.

    This process and Slurm's command are among those that Slurm ends for it, at times before the command has had its answer: both ignore
    SIGTERM until it is done. Slurm takes other nodes for a job only while it waits, so with `exclude` it is requeued on hold, changed, and
    released. Slurm would also revive a job that was cancelled: ask for `job_state` first, and requeue only what is RUNNING or whose wall
    time ended.

    Args:
        exclude: Nodes that it shall not get any more, beside those that it has been told to avoid already.

    Raises:
        InputError: Slurm refuses, or there would be too few nodes left.
    """
    refusal = f"Job {job_id} could not be queued again"
    known = job(job_id)
    if known is None:
        raise InputError(f"{refusal}: Slurm does not know it")
    if not exclude:
        with deaf_to_termination():
            ask("scontrol", "requeue", known.id, refusal=refusal)
        return
    before = hosts(known.excluded)
    avoided = [*before, *(node for node in exclude if node not in before)]
    refuse_without_nodes(known, avoided)
    with deaf_to_termination():
        ask("scontrol", "requeuehold", known.id, refusal=refusal)
        try:
            ask("scontrol", "update", f"JobId={known.id}", f"ExcNodeList={','.join(avoided)}", refusal=refusal)
        finally:
            ask(
                "scontrol",
                "release",
                known.id,
                refusal=f"{refusal}: it is held (scontrol release {known.id} lets it go)",
            )


def refuse_without_nodes(known: Job, avoided: Sequence[str]) -> None:
    """A job whose nodes are all excluded would wait for ever."""
    left = [node for node in nodes(known.partition) if node.name not in avoided and node.working]
    if len(left) < known.node_count:
        raise InputError(
            f"Without {', '.join(avoided)} partition {known.partition} has {len(left)} working nodes and the job needs {known.node_count}: it is "
            "not queued again. Have the nodes mended, then submit the run again"
        )


@contextmanager
def deaf_to_termination() -> Iterator[None]:
    """Ignore SIGTERM, here and in what is started from here."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# -- nodes


@dataclass(frozen=True)
class Node:
    name: str
    state: str
    """One word, without the marks of sinfo: idle, mixed, allocated, down, drained, ..."""
    cores: int
    memory_mb: int
    gpus: dict[str, int]
    """How many of each type; a type without a name is empty."""
    features: frozenset[str]

    @property
    def working(self) -> bool:
        return self.state in WORKING


@dataclass(frozen=True)
class Partition:
    name: str
    default: bool
    up: bool
    seconds: int | None
    """The longest wall time; None where there is no limit."""
    max_nodes: int | None
    """Of one job."""


def partitions() -> list[Partition]:
    return [partition_of(line) for line in ask("scontrol", "show", "partition", "-o").splitlines() if line.strip()]


def partition_of(record: str) -> Partition:
    """A partition from one line of `scontrol show partition -o`."""
    fields = dict(word.split("=", 1) for word in record.split() if "=" in word)
    unlimited = ("UNLIMITED", "INFINITE", "NONE", "")
    limit, most = fields.get("MaxTime", ""), fields.get("MaxNodes", "")
    return Partition(
        name=fields["PartitionName"], default=fields.get("Default") == "YES", up=fields.get("State") == "UP",
        seconds=None if limit in unlimited else seconds_of(limit), max_nodes=None if most in unlimited else int(most),
    )  # fmt: skip


def nodes(partition: str) -> list[Node]:
    lines = ask("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%T|%c|%m|%G|%f").splitlines()
    return [node_of(line) for line in lines if line.strip()]


def node_of(line: str) -> Node:
    """A node from a line of sinfo: name, state, cores, memory in MB, generic resources, features."""
    name, state, cores, memory, resources, features = line.split("|")
    gpus: dict[str, int] = {}
    for each in re.sub(r"\([^)]*\)", "", resources).split(","):
        parts = each.split(":")
        if parts[0] == "gpu":
            kind = parts[1] if len(parts) == 3 else ""
            gpus[kind] = gpus.get(kind, 0) + int(parts[-1])
    return Node(
        name, re.sub(r"[^a-z].*$", "", state), int(cores.rstrip("+")), int(memory.rstrip("+")), gpus,
        frozenset(features.split(",")) - {"(null)"},
    )  # fmt: skip


def hosts(expression: str) -> list[str]:
    """Names of the nodes in an expression such as node[1-3,7],gpu01.

    Raises:
        InputError: it is none.
    """
    if not expression:
        return []
    return ask("scontrol", "show", "hostnames", expression, refusal=f"{expression} names no nodes").split()


# -- what the preflight found


def bad_nodes(run: str | Path) -> list[str]:
    """Nodes that the run's last preflight found bad."""
    path = state_folder(run) / BAD_NODES
    return path.read_text().split() if path.exists() else []
