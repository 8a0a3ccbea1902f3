"""A run as a chain of jobs: for each phase of a stage an array that does its units, and a job that puts together what they wrote."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from data_prep.configuration import DataConfig
from data_prep.files import InputError
from data_prep.recipe import STAGES, mapped_phases
from data_prep.run import run
from data_prep.slurm import queue
from data_prep.slurm.following import follow_jobs
from data_prep.slurm.frontier import Front, Share, survey
from data_prep.slurm.record import Record, Submitted, in_queue, jobs_in_queue
from data_prep.slurm.settings import SlurmConfig
from data_prep.slurm.tasks import Task
from data_prep.stages import exclusive

SIGNAL_SECONDS = 90
"""So long before its time is over a job is told to be queued again."""
REQUEUES = 10_000
"""Those without anything finished are what is limited: see `tasks.MOST_FRUITLESS`."""


@dataclass(frozen=True)
class Planned:
    """A job that is to be submitted."""

    name: str
    does: str
    array: bool = False
    final: bool = False


def plan(config: DataConfig, last: str, fronts: Sequence[Front]) -> list[Planned]:
    """The jobs from the first that is not up to date to the end, each after the one before."""
    verbs = list(STAGES)
    verbs = verbs[verbs.index(fronts[0].verb) : verbs.index(last) + 1]
    phases = mapped_phases(config)
    jobs = [] if any(front.mapped for front in fronts) else [Planned(f"{verbs[0]}-join", "what is not divided")]
    for verb in verbs:
        single = sum(map(len, phases[verb])) == 1
        groups = left(phases[verb], fronts) if verb == fronts[0].verb else phases[verb]
        for group in groups:
            jobs += [Planned(verb if single else f"{verb}-{phase}", f"units of {phase}", array=True) for phase in group]
            whole = group is groups[-1]
            jobs.append(Planned(f"{verb}-join", "puts it together" if whole else "what is not divided"))
    # What puts the last stage together does whatever else is left.
    return [*jobs[:-1], Planned("finish", "all that is left" + (", card" if "tokenize" in verbs else ""), final=True)]


def left(groups: Sequence[Sequence[str]], fronts: Sequence[Front]) -> list[list[str]]:
    """What is left of the phases of a verb whose stages are so far."""
    if not any(front.phase for front in fronts):  # Only to be put together.
        return []
    names = [phase for group in groups for phase in group]
    first = min((names.index(front.phase) for front in fronts if front.phase in names), default=0)
    kept = [[phase for phase in group if names.index(phase) >= first] for group in groups]
    return [group for group in kept if group]


def submit(config: DataConfig, last: str, wait: bool, console: Console) -> None:
    """Submit what is missing of a run, and follow it to its end where asked to.

    Raises:
        InputError: there is no cluster, it refuses a job, jobs of the same output are in the queue, or, where they are
            followed, something failed in them.
    """
    record = Record(Path(config.output))
    with exclusive(record.folder):
        known = jobs_in_queue(record)
        if known and not wait:
            raise in_queue(record, known)
        if not known:
            fronts = survey(config, last)
            if not fronts:
                run(config, last, console)
                return
            if shutil.which("sbatch") is None or shutil.which("srun") is None:
                raise InputError(f"sbatch is not on this machine: {queue.WAY_OUT}.")
            with exclusive(record.output):  # Nobody may be at work here now.
                pass
            for sentence in record.failures():
                console.print(f"failed before, and is tried again: {sentence}", highlight=False, markup=False)
            record.forget_failures()
            jobs = queue_all(config, last, plan(config, last, fronts), record)
            show(jobs, record, console)
    if wait:
        follow_jobs(config, last, record, console)


def queue_all(config: DataConfig, last: str, jobs: Sequence[Planned], record: Record) -> list[Submitted]:
    """Submit all jobs, each after the one before has succeeded. Raises InputError where one is refused; then none is left."""
    submitted: list[Submitted] = []
    try:
        for number, job in enumerate(jobs, 1):
            after = submitted[-1].job if submitted else None
            name = f"{number:02}-{job.name}"
            tasks = config.slurm.tasks if job.array else 1
            shares = [Share(index, tasks) for index in range(tasks)] if job.array else [None]
            work = [Task(config, last, share, job.final) for share in shares]
            number = submit_one(config.slurm, record.logs(name), job.name, work, after, record.mark)
            submitted.append(Submitted(name, job.does, number, tasks, after))
            record.write(submitted)
    except BaseException:
        with suppress(InputError):
            queue.cancel([job.job for job in submitted])
        record.write([])
        raise
    return submitted


def submit_one(
    settings: SlurmConfig, folder: Path, name: str, work: Sequence[Task], after: str | None, mark: str
) -> str:
    """Submit a job, or an array where there are several tasks; returns its number."""
    folder.mkdir(parents=True, exist_ok=True)
    executor = SlurmExecutor(folder=folder, max_num_timeout=REQUEUES, python=settings.python)
    executor.update_parameters(**parameters(settings, name, after, mark, len(work)))
    try:
        # It prints what sbatch says; that is part of our own sentence.
        with own_environment(), redirect_stderr(StringIO()), executor.batch():
            jobs = [executor.submit(task) for task in work]
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(
            f"The cluster did not take the job {name}: Slurm says: {queue.reason_in(str(error))}"
        ) from None
    return jobs[0].job_id.partition("_")[0]


def parameters(settings: SlurmConfig, name: str, after: str | None, mark: str, tasks: int) -> dict[str, Any]:
    """What submitit makes an sbatch script of."""
    more: dict[str, Any] = {"kill-on-invalid-dep": "yes", "requeue": True}
    seconds = settings.minutes * 60
    if seconds <= 3 * SIGNAL_SECONDS:
        # Slurm sends it up to a minute early: a short job would be told to end as it begins. This one does nothing.
        more["signal"] = "CONT@1"
    if settings.memory is not None:
        more["mem"] = settings.memory
    more |= {option.replace("_", "-"): value for option, value in settings.extra.items() if value is not False}
    return {
        "job_name": name, "partition": settings.partition, "account": settings.account, "qos": settings.qos,
        "constraint": settings.constraint, "time": settings.minutes, "nodes": 1, "ntasks_per_node": 1,
        "cpus_per_task": settings.cpus_per_task, "setup": settings.setup or None, "comment": mark, "wckey": None,
        "signal_delay_s": SIGNAL_SECONDS, "array_parallelism": tasks, "stderr_to_stdout": True,
        "dependency": f"afterok:{after}" if after else None, "additional_parameters": more,
        # srun does not take it from sbatch since Slurm 22.05.
        "srun_args": [f"--cpus-per-task={settings.cpus_per_task}"],
    }  # fmt: skip


@contextmanager
def own_environment() -> Iterator[None]:
    """Without what the job says of itself in which this may run: sbatch and srun would take it for wishes."""
    names = [name for name in os.environ if of_job(name)] if "SLURM_JOB_ID" in os.environ else []
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def of_job(name: str) -> bool:
    return re.match(r"(SLURM|SLURMD|SRUN)_", name) is not None and not name.startswith("SLURM_CONF")


def show(jobs: Sequence[Submitted], record: Record, console: Console) -> None:
    """What was submitted, as a table."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("job", "stage", "does", "tasks", "after"):
        table.add_column(title, no_wrap=True, justify="right" if title == "tasks" else "left")
    for job in jobs:
        table.add_row(job.job, job.name, job.does, str(job.tasks), job.after or "")
    console.print(table, highlight=False)
    console.print(f"Logs are in {record.folder}/<stage>/; --wait follows the jobs.", highlight=False, markup=False)
