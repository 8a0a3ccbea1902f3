"""`python -m pipeline submit`: a run planned, checked against the cluster, and queued as a chain of jobs."""

import argparse
import contextlib
import difflib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data_prep.files import InputError

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan
    from pipeline.slurm.checks import Findings
    from pipeline.slurm.settings import Slurm
    from pipeline.slurm.submission import Chain, Member

PASSES_OPTIONS_ON = True
"""Options that are not named here are `fit`'s."""

SHORT = {
    "nodes": ("N", "nodes (default: slurm.nodes)"),
    "gpus_per_node": ("N", "GPUs of each, one rank a GPU; 0: train on the processor"),
    "time": ("HH:MM:SS", "wall time of one job; a run that needs longer is queued again and goes on"),
    "partition": ("NAME", "partition (default: the cluster's)"),
    "account": ("NAME", "account that is charged"),
    "qos": ("NAME", "quality of service"),
    "constraint": ("FEATURES", "features that a node must have"),
    "exclude": ("NODES", "nodes not to use"),
}
"""Options that set a key of the section `slurm`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False
    parser.usage = (
        "%(prog)s --config FILE [--nodes N --gpus-per-node N --time HH:MM:SS] [options] [fit's other options]"
    )
    parser.epilog = (
        "All other options are those of `fit`; the rest of what a job asks for is the section `slurm` of the configuration (python -m pipeline "
        "fit --help shows it), also as --slurm.NAME VALUE. The run directory keeps the scripts, the code and the configuration in "
        "submission/, the output in logs/. Afterwards: status RUN, logs -f RUN, cancel RUN."
    )
    for name, (value, text) in SHORT.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=text)
    parser.add_argument(
        "--after-data", type=Path, metavar="FILE", help="prepare this corpus (a data_prep configuration) first"
    )
    parser.add_argument(
        "--then-evaluate", type=Path, metavar="FILE",
        help="evaluate the trained run: a YAML with options of `evaluate` (tasks, shots, include, limit, ...), or a task of lm-evaluation-harness",
    )  # fmt: skip
    parser.add_argument(
        "--array", metavar="NAME=VALUE,...",
        help="a run for each value, in one array job: seed=1,2,3, config=a.yaml,b.yaml, or any option of fit",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and the scripts, and submit nothing; works anywhere"
    )
    parser.add_argument("--force", action="store_true", help="submit in spite of what the plan or the checks refuse")
    parser.add_argument(
        "--print-run", action="store_true", help="print the run directory that the options mean, and nothing else"
    )


def run(arguments: argparse.Namespace, options: list[str]) -> int:
    from pipeline.slurm import cluster, submission
    from pipeline.slurm.record import queued

    refuse_near_misses(options)
    options = [*options, *slurm_options(arguments)]
    if not any(option.partition("=")[0] in ("--config", "-c") for option in options) and not arguments.array:
        raise InputError("There is nothing to train: give the run's configuration with --config FILE")
    folder = submission.run_directory(options)
    if arguments.print_run:
        print(folder)
        return 0
    if not arguments.dry_run and not cluster.available():
        raise InputError(
            "sbatch is not on this machine: submit from a login node of the cluster, or see with --dry-run what would be"
        )
    if not arguments.dry_run and (jobs := queued(folder)):
        raise InputError(
            f"{folder} is in the queue already, as job {', '.join(job.id for job in jobs)}: python -m pipeline cancel {folder} takes it "
            "off, or set another trainer.default_root_dir"
        )
    members = submission.members(options, arguments.array)
    configs, contents, settings = resolved(members)
    plan, doubts = plan_of(configs[0], contents[0], settings)
    data = submission.resolve_data(arguments.after_data) if arguments.after_data else None
    chain = submission.Chain(
        folder, members, arguments.array is not None, settings, arguments.after_data,
        evaluate_options(arguments.then_evaluate) if arguments.then_evaluate else None,
    )  # fmt: skip
    print(plan.text())
    findings = examine(chain, contents, data, plan, must_answer=not arguments.dry_run)
    findings.refusals[:0] = plan.refusals
    findings.warnings[:0] = doubts
    for sentence in findings.warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    if findings.refusals and not (arguments.force or arguments.dry_run):
        raise InputError("; ".join(findings.refusals) + " (--force submits all the same)")
    for sentence in findings.refusals:
        print(f"{'would be refused' if arguments.dry_run else 'forced'}: {sentence}", file=sys.stderr)
    if arguments.dry_run:
        show(chain)
        return 0
    chain.keep(configs, plan.to_json())
    for role in chain.scripts():
        cluster.refuse_what_slurm_would(chain.folder / f"{role}.sbatch")
    ids = chain.queue()
    report(chain, ids)
    return 0


def refuse_near_misses(options: list[str]) -> None:
    """An option that is neither `fit`'s nor known here but looks like one of these is named before anything is done."""
    known = [
        f"--{name.replace('_', '-')}" for name in (*SHORT, "after-data", "then-evaluate", "array", "dry-run", "force")
    ]
    for option in options:
        name = option.partition("=")[0]
        if (
            name.startswith("--")
            and "." not in name
            and (near := difflib.get_close_matches(name, known, n=2, cutoff=0.8))
        ):
            raise InputError(f"{name} is not an option of submit or fit (near it: {', '.join(near)})")


def slurm_options(arguments: argparse.Namespace) -> list[str]:
    """The short options, and what the layout means for the Trainer, as options of `fit`."""
    from data_prep.slurm_time import clock, seconds_of

    if arguments.time is not None:
        arguments.time = clock(seconds_of(arguments.time))
    given = {name: value for name in SHORT if (value := getattr(arguments, name)) is not None}
    return [f"--slurm.{name}={value}" for name, value in given.items()]


def resolved(members: list["Member"]) -> tuple[list[str], list[dict[str, Any]], "Slurm"]:
    """Each member's whole configuration, as text and parsed, with the layout of the jobs; and the settings of the jobs."""
    import yaml

    from pipeline.slurm import submission

    texts, contents = submission.resolve_all(members), []
    for number, text in enumerate(texts):
        content = yaml.safe_load(text)
        settings = submission.settings_of(content)
        content["trainer"] |= {"num_nodes": settings.nodes, "devices": settings.ranks}
        content["ckpt_path"] = "last"
        if "precision" not in submission.trainer_options(members[number].options):
            # This machine's default; the nodes have their own.
            del content["trainer"]["precision"]
        texts[number] = yaml.safe_dump(content, sort_keys=False)
        contents.append(content)
    return texts, contents, submission.settings_of(contents[0])


def plan_of(config: str, content: dict[str, Any], settings: "Slurm") -> tuple["Plan", list[str]]:
    """The plan of a run on the GPUs that it asks for, and what is doubtful about it."""
    from pipeline.planning.hardware import PRESETS, nearest_preset
    from pipeline.planning.plan import make_plan

    doubts, gpu = [], (content.get("plan") or {}).get("gpu")
    if gpu is None and settings.gpus_per_node:
        gpu = nearest_preset(settings.gpu_type or "").name
        if not settings.gpu_type or gpu.split("-")[0].lower() not in settings.gpu_type.lower():
            doubts.append(f"The plan is for {gpu}: set plan.gpu to what the cluster has, one of {', '.join(PRESETS)}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(config)
        file.flush()
        plan = make_plan(
            ["--config", file.name], nodes=settings.nodes, devices=settings.ranks, hardware=gpu,
            time_limit_seconds=settings.seconds,
        )  # fmt: skip
    return plan, doubts


def examine(
    chain: "Chain", contents: list[dict[str, Any]], data: dict[str, Any] | None, plan: "Plan", must_answer: bool
) -> "Findings":
    """All that speaks against the submission.

    Args:
        must_answer: whether a cluster that does not answer is an error, rather than a warning.
    """
    from pipeline.slurm import checks, cluster

    findings = checks.check_folder(chain.run.resolve(), chain.settings.nodes)
    findings.refusals += checks.check_data(contents, data)
    findings.refusals += checks.check_disk(chain.run, plan.disk_bytes * len(chain.members))
    if not cluster.available():
        return findings
    try:
        partitions = cluster.partitions()
        chosen = checks.partition_for(chain.settings, partitions)
        nodes = cluster.nodes(chosen.name) if chosen else []
    except InputError as error:
        if must_answer:
            raise
        findings.warnings.append(f"Partitions and nodes are not checked, since the cluster does not answer ({error})")
        return findings
    findings.refusals += checks.check_partition(chain.settings, partitions, nodes)
    return findings


def evaluate_options(path: Path) -> list[str]:
    """Options of `evaluate` from a YAML file: a mapping of them, or one task of lm-evaluation-harness.

    Raises:
        InputError: it is neither, or a value is wrong.
    """
    import yaml

    from pipeline.commands import evaluate

    try:
        content = yaml.load(path.read_text(), harness_loader()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold options of `evaluate` by name, such as `tasks: [two_digit_addition]`")
    if "task" in content:
        content = {"tasks": content["task"], "include": str(path.parent.absolute())}
    options = []
    for name, value in content.items():
        if value is True:
            options += [f"--{name}"]
        elif value not in (None, False):
            options += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    parser = Strict(prog=str(path), allow_abbrev=False)
    evaluate.add_arguments(parser)
    parser.parse_args(["--run", "run", *options])
    return options


def harness_loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads the tags of lm-evaluation-harness, such as !function, as nothing."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    return Loader


class Strict(argparse.ArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message} (see python -m pipeline evaluate --help)")


def show(chain: "Chain") -> None:
    for role, text in chain.scripts().items():
        print(f"==> {chain.folder / f'{role}.sbatch'} <==\n{text}")
    print("Nothing was submitted (--dry-run).")


def report(chain: "Chain", ids: dict[str, str]) -> None:
    """The jobs, and what next."""
    what = {"data": "prepares the data", "train": "trains", "evaluate": "evaluates"}
    previous = ""
    for role, job in ids.items():
        size = f", {len(chain.members)} runs" if chain.array and role != "data" else ""
        after = f", when {previous} has succeeded" if previous else ""
        print(f"job {job} {what[role]}{size}{after}")
        previous = job
    shown = chain.run
    with contextlib.suppress(ValueError):
        shown = chain.run.relative_to(Path.cwd())
    print(f"run directory {shown}; next: python -m pipeline status {shown}, logs -f {shown}, cancel {shown}")
