"""Training jobs under test: a run of a few seconds through slurm/train.sbatch, and what it leaves."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from slurm.cluster import Cluster
from tiny_runs import GPT

from pipeline.slurm.attempts import Attempt, Journal
from pipeline.step_records import read_rows

ROOT = Path(__file__).parents[2]
BATCH = 1024
STEPS = 30
FAULTS = "faults_in_jobs"


def config(run: Path, tokens: Path) -> dict:
    """30 steps with dropout and two micro-batches or more each, a checkpoint every 3 and a validation every 10."""
    return {
        "trainer": {
            "default_root_dir": str(run), "log_every_n_steps": 1, "enable_progress_bar": False, "precision": "32-true",
            "accelerator": "cpu", "callbacks": [
                {"class_path": "pipeline.callbacks.sample_record.SampleRecord", "init_args": {"folder": str(run / "samples")}},
            ],
        },
        "model": {
            "architecture": GPT | {"init_args": GPT["init_args"] | {"dropout": 0.1}},
            "optimizer": {"learning_rate": 3e-3},
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 8, "prefetch": 2,
            "total_tokens": STEPS * BATCH, "validate_every_tokens": 10 * BATCH, "validation_tokens": 4000,
        },
        "checkpoint": {"every_tokens": 3 * BATCH},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip


class TrainingJob:
    """One run, which may need several jobs.

    Args:
        faults: callbacks of faults_in_jobs by name, with their arguments.
        options: of `fit`.
    """

    def __init__(
        self, slurm: Cluster, folder: Path, tokens: Path, faults: Sequence[tuple[str, dict]] = (), seconds: Sequence[float] = (0.02,),
        options: Sequence[str] = (),
    ):  # fmt: skip
        self.slurm, self.run, self.options = slurm, folder / "run", list(options)
        folder.mkdir(parents=True, exist_ok=True)
        content = config(self.run, tokens)
        for name, arguments in [("Slowly", {"seconds": [*seconds]}), *faults]:
            content["trainer"]["callbacks"].append({"class_path": f"{FAULTS}.{name}", "init_args": arguments})
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(content))
        self.output = folder / "output.txt"

    def submit(self, *of_sbatch: str, environment: dict[str, str] | None = None) -> int:
        """Queue it by hand, as docs/slurm.md says; return the job's number."""
        # Nodes are checked in test_preflight.py.
        own = {
            "PREFLIGHT_SECONDS": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "slurm"), str(ROOT)]),
            **(environment or {}),
        }
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in own.items())])
        return self.slurm.submit(
            "--chdir", ROOT, "--output", self.output, "--export", exported, *of_sbatch,
            ROOT / "slurm" / "train.sbatch", self.config, *self.options,
        )  # fmt: skip

    def rows(self) -> list[dict[str, str]]:
        return read_rows(self.run / "metrics.csv")

    def curve(self) -> list[tuple[str, ...]]:
        """What must be equal, digit by digit, in two runs of the same configuration."""
        names = ("step", "tokens", "train/loss", "train/grad_norm", "train/learning_rate", "val/loss")
        return [tuple(row.get(name) or "" for name in names) for row in self.rows()]

    def samples(self) -> list[tuple[int, list]]:
        """Number and checksum of each sample of each step over all ranks, as often as it stands there."""
        lines: dict[int, list] = {}
        for path in sorted((self.run / "samples").glob("samples-*.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                lines.setdefault(line["step"], []).extend(map(tuple, line["samples"]))
        return [(step, sorted(samples)) for step, samples in sorted(lines.items())]

    def last_step(self) -> int:
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def reaches(self, step: int, seconds: float = 90) -> None:
        """Wait until a step is logged."""
        self.slurm.wait_until(lambda: self.last_step() >= step, seconds, f"step {step} of {self.run}")

    def attempts(self) -> list[Attempt]:
        return Journal(self.run).attempts()

    def outcomes(self) -> list[str]:
        return [attempt.outcome for attempt in self.attempts()]

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def uninterrupted(slurm: Cluster, tokens: Path, scratch: Path, *of_sbatch: str) -> TrainingJob:
    """A run that nothing happens to; the first worker to ask for it makes it for all.

    Args:
        scratch: a folder that all workers share.
    """
    folder = scratch / ("whole" + "".join(of_sbatch))
    folder.mkdir(exist_ok=True)
    job = TrainingJob(slurm, folder, tokens)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not job.run.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OMP_NUM_THREADS", "1")
                number = job.submit(*of_sbatch)
            assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    assert job.outcomes() == ["done"]
    assert [step for step, _ in job.samples()] == [*range(1, STEPS + 1)]
    return job


def equal(job: TrainingJob, whole: TrainingJob) -> None:
    """Assert that a run is, step by step and sample by sample, one that nothing happened to."""
    assert job.curve() == whole.curve(), job.said()[-3000:]
    assert job.samples() == whole.samples()
