"""`python -m pipeline verify-resume`: proof, on the user's own configuration, that a killed run goes on as if it had never stopped.

One run is not stopped. Another is killed after a checkpoint; copies of what it leaves go on to the end, each at some number of ranks
under some strategy, and all that they did is compared with the first.
"""

import argparse
import json
import math
import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from data_prep.files import InputError
from pipeline.step_records import read_rows

PASSES_OPTIONS_ON = True
"""Options that are not named here are `fit`'s."""

TINY = 1e-300

LEAST_STEPS = 6
"""Room for two kills, each after a checkpoint and a step more."""

COMPARED = {
    "train/loss": "losses", "val/loss": "losses", "train/learning_rate": "rates", "train/grad_norm": "norms",
}  # fmt: skip
"""What each column of metrics.csv counts as."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest relative differences between two runs, or what they may be; infinite where one of the two lacks something."""

    losses: float = 0.0
    rates: float = 0.0
    """Learning rates."""
    norms: float = 0.0
    """Of gradients."""
    weights: float = 0.0
    """Of the difference of all to all of them, both as L2 norms (some by themselves, as a bias of keys, have a gradient of nothing but
    rounding, which Adam makes full steps of); and of their moving averages."""
    moments: float = 0.0
    """The same of what the optimizer keeps."""

    def within(self, limit: "Difference") -> bool:
        return all(getattr(self, each.name) <= getattr(limit, each.name) for each in fields(self))


EXACT = Difference()
BANDS = {
    # torch's fp32 norm of a million numbers is off by up to 1e-4 on a CPU, less so in parts, and clipping hands it on.
    "32": Difference(losses=1e-5, norms=1e-3, weights=1e-4, moments=1e-3),
    "16": Difference(losses=1e-3, norms=2e-2, weights=1e-2, moments=2e-2),
}
"""What sums in another order may change, by the bits that the arithmetic of trainer.precision has."""
UNCOMPARED = Difference(losses=math.inf, norms=math.inf, weights=math.inf, moments=math.inf)
"""Where the layout decides what is drawn at random: learning rates alone are the same."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread."""

    ranks: int
    strategy: str | None
    """What trainer.strategy is set to; None leaves the configuration's."""
    name: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.ranks} x {self.name}"


@dataclass
class Run:
    """A run folder with what its legs, from start or resumption to kill or end, have recorded."""

    folder: Path
    legs: list[Path] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def saved_step(self) -> int:
        return int(self.checkpoint.resolve().name.rpartition("-")[2]) if self.checkpoint.exists() else 0

    def copy(self, folder: Path) -> "Run":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Run(folder, [*self.legs])

    def rows(self) -> list[dict[str, str]]:
        return read_rows(self.folder / "metrics.csv")

    def metrics(self) -> dict[tuple[int, str], float]:
        """Each figure that is compared, by step and column."""
        return {(int(row["step"]), name): float(row[name]) for row in self.rows() for name in COMPARED if row.get(name)}


@dataclass(frozen=True)
class Row:
    """One way of stopping a run and going on, and what came of it."""

    layouts: list[Layout]
    """Of its legs."""
    kills: list[int]
    """Steps that the legs had done when they were killed."""
    resumptions: list[int]
    """Steps after which the others went on."""
    strange_step: int | None
    """The first that trained on other samples than the run that was not stopped."""
    difference: Difference
    allowed: Difference

    @property
    def passed(self) -> bool:
        return self.strange_step is None and self.difference.within(self.allowed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.allow_abbrev = False
    parser.usage = (
        "%(prog)s [--ranks 1,2] [--steps 20] [--strategy ddp,zero2] [--keep DIR] --config FILE [fit's other options]"
    )
    parser.epilog = (
        "All other options are those of `fit`. The schedule is the configuration's: --steps only ends the runs early. Set are besides: "
        "the run's folder, devices, a row of metrics for every step, a small validation, no wandb, and micro_batch where more "
        "ranks need a smaller one. Exit status 1 where a resumed run differs."
    )
    parser.add_argument(
        "--ranks", default="1,2", metavar="N,N", help="numbers of processes, the first to begin with (default: 1,2)"
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="of each run (default: 20)")
    parser.add_argument(
        "--strategy", metavar="NAME,NAME",
        help="trainer.strategy of more than one rank, each in turn (default: the configuration's, or ddp)",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs and their output here")


def run(arguments: argparse.Namespace, options: list[str]) -> int:
    if arguments.steps < LEAST_STEPS:
        raise InputError(f"--steps is {arguments.steps}: two kills and a way on need {LEAST_STEPS} or more")
    ranks = numbers(arguments.ranks)
    with working_folder(arguments.keep) as folder:
        proof = Proof(folder, options, ranks, arguments.strategy, arguments.steps)
        return proof.table(proof.rows())


def numbers(text: str) -> list[int]:
    """The numbers of ranks that the command line names."""
    if not all(part.isdigit() and int(part) > 0 for part in text.split(",")):
        raise InputError(f"--ranks is {text}: it must be whole numbers from 1 on with commas between them, such as 1,2")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


@contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with TemporaryDirectory(prefix="verify-resume-") as folder:
            yield Path(folder)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise InputError(f"{keep} is there already: give --keep a folder that is new or empty")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()


class Proof:
    """The runs, and how they compare.

    Args:
        folder: for the runs; empty.
        options: the command line of `fit`.
        ranks: the first is where runs begin, and where one is never stopped.
        strategies: of more than one rank, with commas between them.
    """

    def __init__(self, folder: Path, options: Sequence[str], ranks: Sequence[int], strategies: str | None, steps: int):
        import torch

        self.folder, self.options, self.started = folder, list(options), count(1)
        self.cuda = torch.cuda.device_count() >= max(ranks)
        # Where the threads of a sum change, so does its last digit.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(ranks))))
        # Processes are forked from one that has imported what `fit` needs; CUDA does not live through a fork.
        self.context: Any = multiprocessing.get_context("spawn" if self.cuda else "forkserver")
        self.context.set_forkserver_preload(["pipeline.training_cli"])
        self.config = self.resolve()
        self.cuda &= self.config["trainer"]["accelerator"] != "cpu"
        limit = self.config["trainer"]["max_steps"]
        self.steps = min(steps, limit) if limit > 0 else steps
        self.layouts = [layout for number in ranks for layout in self.layouts_of(number, strategies)]

    # -- layouts

    def layouts_of(self, ranks: int, strategies: str | None) -> list[Layout]:
        """The layouts of so many ranks.

        Raises:
            InputError: they cannot share a batch.
        """
        data, configured = self.config["data"], self.config["trainer"]["strategy"]
        unit = data["batch_tokens"]
        if ramp := data["batch_ramp"]:
            unit = ramp["multiple_tokens"] or math.gcd(unit, ramp["start_tokens"])
        sequences = unit // data["context"]
        if sequences % ranks:
            raise InputError(
                f"A batch of {sequences} sequences (data.batch_tokens / data.context) cannot be shared by {ranks} ranks: "
                f"give --ranks divisors of {sequences}"
            )
        share = sequences // ranks
        micro_batch = max(size for size in range(1, share + 1) if share % size == 0 and size <= data["micro_batch"])
        of_config: tuple[str | None, str] = (None, name_of(configured))
        if configured in ("auto", "single") or (strategies and ranks == 1):
            of_config = ("single", "single") if ranks == 1 else ("ddp", "ddp")
        chosen = [(name, name) for name in strategies.split(",")] if strategies and ranks > 1 else [of_config]
        return [Layout(ranks, strategy, name, micro_batch) for strategy, name in chosen]

    @property
    def drawn(self) -> str | None:
        """The setting by which the layout decides what is drawn at random, if there is one."""
        found = [name for name, value in leaves(self.config["model"], "model") if draws(name) and value]
        return found[0] if found else None

    # -- runs

    def rows(self) -> Iterator[Row]:
        """Make the runs: one that is not stopped, one that is killed, and the ways on from there, of which each makes a row."""
        home = self.layouts[0]
        whole = Run(self.folder / "uninterrupted")
        self.train(whole, home)
        self.steps = min(self.steps, max((step for step, _ in whole.metrics()), default=0))
        if self.steps < LEAST_STEPS:
            raise InputError(
                f"The configuration's run has {self.steps} steps, this needs {LEAST_STEPS}: raise data.total_tokens"
            )
        # Saved at two steps and at the end, and killed a step after each of the two.
        first, second = self.steps // 3, 2 * (self.steps // 3)
        every_tokens = next(int(row["tokens"]) for row in whole.rows() if row["step"] == str(first))

        killed = Run(self.folder / "killed")
        self.train(killed, home, every_tokens, kill_after=first + 1)
        for number, away in enumerate(self.layouts):
            resumed = killed.copy(self.folder / f"resumed-{number}")
            layouts, kills, resumptions = [home, away], [first + 1], [resumed.saved_step]
            if away is not home:
                self.train(resumed, away, every_tokens, kill_after=second + 1)
                layouts.append(home)
                kills.append(second + 1)
                resumptions.append(resumed.saved_step)
            self.train(resumed, home, every_tokens)
            allowed = EXACT if away is home else UNCOMPARED if self.drawn else self.band
            row = Row(layouts, kills, resumptions, first_strange_step(whole, resumed), compare(whole, resumed), allowed)
            yield row
            if row.passed:
                shutil.rmtree(resumed.folder / "checkpoints")

    @property
    def band(self) -> Difference:
        return BANDS["16" if "16" in str(self.config["trainer"]["precision"]) else "32"]

    def train(self, run: Run, layout: Layout, every_tokens: int | None = None, kill_after: int | None = None) -> None:
        """Start or go on with a run, to its end or until it is killed by SIGKILL in the step after `kill_after`.

        Raises:
            InputError: `fit` refused or failed.
        """
        number = next(self.started)
        samples = self.folder / "samples" / str(number)
        log = self.folder / f"fit-{number}-{layout.ranks}-{layout.name}.log"
        begun, from_step = time.monotonic(), run.saved_step
        recorder = {"folder": str(samples), "stand_still_after": kill_after}
        data = self.config["data"]
        limit = min(data["batch_tokens"], data["validation_tokens"] or data["batch_tokens"])
        settings: dict[str, Any] = {
            "trainer.default_root_dir": run.folder, "trainer.max_steps": self.steps, "trainer.num_nodes": 1,
            "trainer.accelerator": "cuda" if self.cuda else "cpu", "trainer.devices": layout.ranks,
            "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": "false", "data.micro_batch": layout.micro_batch,
            "data.validation_tokens": limit, "wandb.mode": "disabled", "ckpt_path": "last",
            "trainer.callbacks+": json.dumps(
                {"class_path": "pipeline.callbacks.sample_record.SampleRecord", "init_args": recorder}
            ),
        }  # fmt: skip
        if layout.strategy:
            settings["trainer.strategy"] = layout.strategy
        if every_tokens:
            settings["checkpoint.every_tokens"] = every_tokens
        arguments = ["fit", *self.options, *(f"--{name}={value}" for name, value in settings.items())]
        processes = self.start(arguments, layout.ranks, log)
        try:
            while any(process.is_alive() for process in processes):
                if any(process.exitcode for process in processes):
                    break  # The others wait for it.
                if kill_after and (kill_after, "train/loss") in run.metrics() and run.saved_step > from_step:
                    break
                time.sleep(0.02)
        finally:
            failed = any(process.exitcode for process in processes)
            for process in processes:
                process.kill()
                process.join()
        if failed:
            raise InputError(f"fit on {layout} failed: {sentence(log)}")
        run.legs.append(samples)
        what = f"killed in step {kill_after + 1}" if kill_after else "ended"
        since = f"from step {from_step}" if from_step else "from the start"
        print(f"{layout}, {since}: {what}, {time.monotonic() - begun:.1f} s", file=sys.stderr)

    def start(self, arguments: list[str], ranks: int, log: Path) -> list[Any]:
        """Processes that run a command of the pipeline together, as torchrun would start them."""
        shared = {}
        if ranks > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            shared = {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "GROUP_RANK": "0",
                "LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "verify-resume",
            }  # fmt: skip
        processes = []
        for rank in range(ranks):
            own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {})
            processes.append(self.context.Process(target=command, args=(arguments, own, log), daemon=True))
            processes[-1].start()
        return processes

    def resolve(self) -> dict[str, Any]:
        """The configuration that `fit` makes of the options.

        Raises:
            InputError: it makes none.
        """
        output, errors = self.folder / "config.yaml", self.folder / "config.log"
        arguments = ["fit", *self.options, "--print_config"]
        process = self.context.Process(target=command, args=(arguments, {}, output, errors), daemon=True)
        process.start()
        process.join()
        if process.exitcode:
            raise InputError(sentence(errors))
        return yaml.safe_load(output.read_text())

    # -- what is printed

    def table(self, rows: Iterable[Row]) -> int:
        """Print the rows; return the exit status."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table, passed = Table(box=box.SIMPLE_HEAD, pad_edge=False), True
        names = [each.name for each in fields(Difference)]
        for heading in ("layout", "killed after", "resumed after", "samples", *names, ""):
            table.add_column(heading)
        for row in rows:
            passed &= row.passed
            figures = (figure(getattr(row.difference, name), getattr(row.allowed, name)) for name in names)
            table.add_row(
                " → ".join(map(str, row.layouts)), ", ".join(map(str, row.kills)), ", ".join(map(str, row.resumptions)),
                "equal" if row.strange_step is None else f"differ at {row.strange_step}", *figures,
                "pass" if row.passed else "FAIL",
            )  # fmt: skip
        console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
        console.print(table)
        console.print(
            f"Largest relative differences to a run of {self.steps} steps on {self.layouts[0]} that was not stopped. Resumed at its own "
            "layout, a run must equal it bit for bit.",
            soft_wrap=True,
        )
        if len(self.layouts) > 1:
            console.print(self.rule_of_others(), soft_wrap=True)
        console.print("PASS" if passed else "FAIL", style="bold green" if passed else "bold red")
        return 0 if passed else 1

    def rule_of_others(self) -> str:
        """What is asked of runs that were resumed at another layout."""
        if self.drawn:
            return (
                f"{self.drawn} draws from the random numbers of each rank, so at another layout only samples and learning rates are "
                f"compared: with --{self.drawn} 0 all is."
            )
        band, precision = self.band, self.config["trainer"]["precision"]
        return (
            f"At another layout, where sums are taken in another order, at {precision}: losses to {band.losses:g}, norms of gradients to "
            f"{band.norms:g}, weights to {band.weights:g}, the optimizer's moments to {band.moments:g}, the rest exactly."
        )


def command(arguments: list[str], environment: Mapping[str, str], output: Path, errors: Path | None = None) -> None:
    """`python -m pipeline` with these arguments, in a process of its own."""
    for path, descriptors in ((output, (1, 2)), (errors, (2,))):
        if path is not None:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for descriptor in descriptors:
                os.dup2(file, descriptor)
    # Inside a job, the processes started here are none of its tasks.
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]
    os.environ |= environment
    sys.argv = ["pipeline", *arguments]
    runpy.run_module("pipeline", run_name="__main__")


def sentence(log: Path) -> str:
    """What a failed command said, without the word error: its sentence, or the last line of its traceback."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    return next((line for line in lines if line.startswith("error: ")), lines[-1]).removeprefix("error: ")


# -- the comparison


def compare(whole: Run, resumed: Run) -> Difference:
    """What `resumed` did otherwise than `whole`."""
    largest = {each.name: 0.0 for each in fields(Difference)}
    mine, theirs = resumed.metrics(), whole.metrics()
    for key in mine.keys() | theirs.keys() | {(0, name) for name in COMPARED.keys() - {name for _, name in theirs}}:
        a, b = mine.get(key, math.nan), theirs.get(key, math.nan)
        note(largest, COMPARED[key[1]], a == b, abs(a - b) / max(abs(a), abs(b), TINY))
    for what, equal, away in compare_states(whole.checkpoint, resumed.checkpoint):
        note(largest, what, equal, away)
    return Difference(**largest)


def note(largest: dict[str, float], what: str, equal: bool, away: float) -> None:
    away = 0.0 if equal else math.inf if math.isnan(away) else away
    largest[what] = max(largest[what], away)


def compare_states(one: Path, other: Path) -> Iterator[tuple[str, bool, float]]:
    """Of each kind of a checkpoint's tensors: what it counts as, whether all are the same in both, the relative difference."""
    from pipeline.state_files import AVERAGE, WEIGHTS, StateFolder

    a, b = StateFolder(one), StateFolder(other)
    if a.index.keys() != b.index.keys() or a.record != b.record:
        yield "weights", False, math.inf
        return
    for kind in a.kinds:
        equal, squares, of_difference = True, 0.0, 0.0
        for name in a.names(kind):
            first, second = a.tensor(kind, name).double(), b.tensor(kind, name).double()
            equal &= first.equal(second)
            squares += float(first.square().sum())
            of_difference += float((first - second).square().sum())
        yield (
            "weights" if kind in (WEIGHTS, AVERAGE) else "moments",
            equal,
            math.sqrt(of_difference / max(squares, TINY)),
        )


def first_strange_step(whole: Run, resumed: Run) -> int | None:
    """The first step for which a leg of `resumed` has other samples than `whole`, or that no leg has trained."""
    [expected] = [samples_of(leg) for leg in whole.legs]
    legs = [samples_of(leg) for leg in resumed.legs]
    different = {step for leg in legs for step, samples in leg.items() if samples != expected.get(step)}
    different |= expected.keys() - {step for leg in legs for step in leg}
    return min(different, default=None)


def samples_of(leg: Path) -> dict[int, list[list[int]]]:
    """Number and checksum of each sample of each step, over all ranks, sorted."""
    steps: dict[int, list[list[int]]] = {}
    for path in leg.glob("samples-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            steps.setdefault(line["step"], []).extend(line["samples"])
    return {step: sorted(samples) for step, samples in steps.items()}


# -- names


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Settings of a configuration by the names that they have on the command line."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, name if key == "init_args" else f"{name}.{key}")
    else:
        yield name, value


def draws(name: str) -> bool:
    return "dropout" in name.rpartition(".")[2] or name.endswith(".scheduled_sampling")


def name_of(strategy: Any) -> str:
    """A strategy of the configuration, for people to read."""
    if isinstance(strategy, str):
        return strategy
    settings = strategy.get("init_args") or {}
    return strategy["class_path"].rpartition(".")[2] + (f"-{settings['stage']}" if "stage" in settings else "")


def figure(value: float, allowed: float) -> str:
    return "not compared" if allowed == math.inf else "equal" if value == 0 else f"{value:.1e}"
