"""A run on its way to the cluster: its members, scripts and chain of jobs, and what is kept of them in the run directory."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.files import InputError, write_json, write_text
from data_prep.slurm_time import clock
from pipeline.planning.settings import merge, read_yaml, split_options
from pipeline.slurm import cluster, script
from pipeline.slurm.record import DATA, EVALUATE, FOLDER, LOGS, TRAIN, Record, mark
from pipeline.slurm.settings import SideJob, Slurm
from pipeline.trainer_defaults import TRAINER_DEFAULTS

PROJECT = Path(__file__).parents[2]
COPIED = ("pipeline", "data_prep", "configs/tasks")
"""What of the project a job runs with."""
SEEDS = ("seed_everything", "data.seed")
"""What `seed` stands for in an array: the initial weights, and the order of samples."""


# -- what is to run


@dataclass(frozen=True)
class Member:
    """One run: the only one, or one of an array."""

    run: Path
    """Its directory, absolute."""
    options: list[str]
    """Of `fit`."""


def members(options: Sequence[str], axis: str | None) -> list[Member]:
    """The runs that options of `fit` and an array over one of them describe.

    Args:
        axis: NAME=VALUE,VALUE,...: `seed`, any option of `fit`, or `config` with a file for each; None: one run.

    Raises:
        InputError: the axis cannot be read, or two members would have one directory.
    """
    run = run_directory(options)
    if axis is None:
        return [Member(run, [*options])]
    name, equals, values = axis.lstrip("-").partition("=")
    listed = [value for value in values.split(",") if value]
    if not equals or not listed:
        raise InputError(f"--array is {axis}: write NAME=VALUE,VALUE,..., such as seed=1,2,3")
    found = []
    for value in listed:
        changed = SEEDS if name == "seed" else (name,)
        label = Path(value).stem if name == "config" else f"{name.rpartition('.')[2]}-{value}"
        folder = run / re.sub(r"[^\w.+-]", "_", label)
        own = [word for option in changed for word in (f"--{option}", value)]
        found.append(Member(folder, [*options, *own, "--trainer.default_root_dir", str(folder)]))
    if len({member.run for member in found}) < len(found):
        raise InputError(
            f"--array is {axis}: two of its members would have the same directory, so name each value once"
        )
    return found


def run_directory(options: Sequence[str]) -> Path:
    """trainer.default_root_dir as `fit` would have it, absolute."""
    return Path(str((TRAINER_DEFAULTS | trainer_options(options))["default_root_dir"])).absolute()


def trainer_options(options: Sequence[str]) -> dict[str, Any]:
    """What options of `fit` say of the Trainer, without defaults."""
    files, overrides = split_options(options)
    trainer: dict[str, Any] = {}
    for file in files:
        merge(trainer, read_yaml(file).get("trainer") or {})
    return trainer | {name.removeprefix("trainer."): value for name, value in overrides if name.startswith("trainer.")}


def resolve(options: Sequence[str]) -> str:
    """The whole configuration that `fit` would make of these options, as YAML.

    Raises:
        InputError: what `fit` says to it.
    """
    return asked([sys.executable, "-m", "pipeline", "fit", *options, "--print_config"])


def resolve_all(runs: Sequence[Member]) -> list[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda member: resolve(member.options), runs))


def resolve_data(config: Path) -> dict[str, Any]:
    """The configuration of data preparation in a file."""
    return yaml.safe_load(asked([sys.executable, "-m", "data_prep", "run", "--config", str(config), "--print_config"]))


def asked(command: Sequence[str]) -> str:
    # Inside a job, this process is none of its tasks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise InputError(
            next((line for line in lines if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
        )
    return done.stdout


def settings_of(config: dict[str, Any]) -> Slurm:
    """The section `slurm` of a resolved configuration."""
    section = dict(config.get("slurm") or {})
    for name in (DATA, EVALUATE):
        section[name] = SideJob(**section[name]) if section.get(name) else SideJob()
    return Slurm(**section)


# -- scripts


@dataclass(frozen=True)
class Chain:
    """The jobs of a submission."""

    run: Path
    """The run directory, or of an array the folder above its members'."""
    members: list[Member]
    array: bool
    settings: Slurm
    data: Path | None = None
    """Configuration of the data that is prepared first."""
    evaluate: list[str] | None = None
    """Options of the evaluation that follows."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def folder(self) -> Path:
        return self.run / FOLDER

    def scripts(self) -> dict[str, str]:
        """The job scripts by role, in the order of the chain."""
        texts = {}
        if self.data is not None:
            texts[DATA] = self.side_script(DATA, side=self.settings.data, config=str(self.folder / "data.yaml"))
        texts[TRAIN] = script.render(
            script.template(TRAIN), self.training_directives(),
            {
                **self.common(), "outside": [self.outside()], "runs": self.runs, "launcher": self.settings.launcher, "max_restarts": self.settings.max_restarts,
                "preflight_seconds": f"{self.settings.preflight_seconds:g}" if self.settings.preflight else "",
            },
            {"setup": self.setup()},
        )  # fmt: skip
        if self.evaluate is not None:
            texts[EVALUATE] = self.side_script(
                EVALUATE, side=self.settings.evaluate, runs=self.runs, options=self.evaluate
            )
        return texts

    @property
    def runs(self) -> list[str]:
        return [str(member.run) for member in self.members]

    def side_script(self, role: str, *, side: SideJob, **settings: script.Value) -> str:
        array = self.array and role == EVALUATE
        return script.render(
            script.template(role),
            self.side_directives(role, side, array),
            {**self.common(), **settings},
            {"setup": self.setup()},
        )

    def common(self) -> dict[str, script.Value]:
        return {"code": str(self.folder / "code"), "python": self.python()}

    def python(self) -> list[str]:
        """The words that start Python in a job."""
        settings = self.settings
        if settings.container:
            return ["apptainer", "exec", *settings.container_options, settings.container, settings.python or "python"]
        return [self.outside()]

    def outside(self) -> str:
        """Python of the batch shell, which has no container around it."""
        inside = self.settings.python if self.settings.container is None else None
        return inside or ("python" if self.settings.setup.strip() else sys.executable)

    def setup(self) -> str:
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.settings.environment.items()]
        return "\n".join([*self.settings.setup.strip().splitlines(), *exports])

    def training_directives(self) -> list[str]:
        settings = self.settings
        kind = f"{settings.gpu_type}:" if settings.gpu_type else ""
        given = {
            "job-name": self.name, "nodes": settings.nodes, "ntasks-per-node": settings.ranks, "cpus-per-task": settings.cpus_per_task,
            "gpus-per-node": f"{kind}{settings.gpus_per_node}" if settings.gpus_per_node else None, "mem": settings.mem,
            "time": clock(settings.seconds), "signal": f"USR1@{settings.signal_seconds}" if settings.signal_seconds else None,
            **self.where(settings.partition),
        }  # fmt: skip
        return [*self.directives(TRAIN, given, self.array), *settings.extra]

    def side_directives(self, role: str, side: SideJob, array: bool) -> list[str]:
        kind = f"{self.settings.gpu_type}:" if self.settings.gpu_type else ""
        given = {
            "job-name": f"{self.name}-{role}", "nodes": 1, "cpus-per-task": side.cpus, "mem": side.mem, "time": clock(side.seconds),
            "gpus-per-node": f"{kind}{side.gpus}" if side.gpus else None, **self.where(side.partition or self.settings.partition),
        }  # fmt: skip
        return [*self.directives(role, given, array), *side.extra]

    def where(self, partition: str | None) -> dict[str, Any]:
        settings = self.settings
        return {
            "partition": partition, "account": settings.account, "qos": settings.qos, "constraint": settings.constraint,
            "exclude": settings.exclude, "reservation": settings.reservation, "mail-user": settings.mail_user,
            "mail-type": "END,FAIL,REQUEUE" if settings.mail_user else None,
        }  # fmt: skip

    def directives(self, role: str, given: dict[str, Any], array: bool) -> list[str]:
        output = str(self.run / LOGS).replace("%", "%%") + f"/{role}-{'%A_%a' if array else '%j'}.out"
        given |= {"output": output, "open-mode": "append", "comment": mark(self.run)}
        if array:
            given["array"] = f"0-{len(self.members) - 1}"
        words = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return ["--requeue", *(f'"{word}"' if re.search(r"\s", word) else word for word in words)]

    # -- kept in the run directory

    def keep(self, configs: Sequence[str], plan: dict[str, Any] | None) -> None:
        """Write the code, the scripts and each member's configuration into the run directory, in place of an earlier submission's."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        (self.run / LOGS).mkdir(exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".submission-", dir=self.run))
        new.chmod(0o755)
        try:
            keep_code(new)
            for role, text in self.scripts().items():
                write_text(new / f"{role}.sbatch", text)
            if self.data is not None:
                shutil.copyfile(self.data, new / "data.yaml")
            if plan is not None:
                write_json(new / "plan.json", plan)
            shutil.rmtree(self.folder, ignore_errors=True)
            new.rename(self.folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        for member, config in zip(self.members, configs, strict=True):
            write_text(member.run / FOLDER / "config.yaml", config)

    def queue(self) -> dict[str, str]:
        """Submit the jobs, each after the one before it has succeeded; return their ids by role.

        A job whose predecessor fails is cancelled rather than left waiting.

        Raises:
            InputError: Slurm refuses one; those before it are cancelled.
        """
        ids: dict[str, str] = {}
        try:
            for role in self.scripts():
                options = []
                if ids:
                    # A member is evaluated when it is trained, whatever becomes of the others.
                    kind = "aftercorr" if self.array and role == EVALUATE else "afterok"
                    options = [f"--dependency={kind}:{[*ids.values()][-1]}", "--kill-on-invalid-dep=yes"]
                ids[role] = cluster.submit(self.folder / f"{role}.sbatch", options)
        except BaseException:
            cluster.cancel([*ids.values()])
            raise
        for number, member in enumerate(self.members):
            own = {role: f"{job}_{number}" if self.array and role != DATA else job for role, job in ids.items()}
            Record(member.run).write(self.facts(own))
        if self.array:
            Record(self.run).write(self.facts(ids) | {"members": self.runs})
        return ids

    def facts(self, jobs: dict[str, str]) -> dict[str, Any]:
        """What is kept of the jobs of a run."""
        settings = self.settings
        return {
            "submitted": time.time(), "jobs": jobs, "nodes": settings.nodes, "gpus_per_node": settings.gpus_per_node,
            "ranks": settings.nodes * settings.ranks, "seconds": settings.seconds,
            "outputs": {role: str(self.run / LOGS / f"{role}-{job}.out") for role, job in jobs.items()},
        }  # fmt: skip


def keep_code(folder: Path) -> None:
    """Copy the packages, and say what they are: the commit, and what differs from it."""
    for name in COPIED:
        source = PROJECT / name
        if source.exists():
            shutil.copytree(source, folder / "code" / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    described = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    write_text(folder / "commit", (described or "not from a git checkout") + "\n")
    if described.endswith("-dirty"):
        write_text(folder / "uncommitted.patch", git("diff", "HEAD", strip=False))


def git(*words: str, strip: bool = True) -> str:
    try:
        done = subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = done.stdout if done.returncode == 0 else ""
    return said.strip() if strip else said
