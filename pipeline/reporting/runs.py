"""Reading run folders: what each run left on disk, as far as it got.

A report is wanted most when something went wrong, so nothing here insists: a file that is missing, half-written or of
another shape becomes a sentence for the reader, never an exception.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from data_prep.files import InputError, fingerprint, sha256_file
from pipeline.reporting.records import dig, number, parse, read_lines, read_object, read_text

PROGRESS = ("step", "tokens", "seconds", "flops")
"""The columns of metrics.csv that say how far a run had come; every other column is something that was measured."""

HASH_LIMIT_BYTES = 2**31
"""Checkpoints above this size are named but not hashed: hashing would take longer than the report."""


DIFFERENT_TEXT = "These runs are judged on different text, so their losses do not compare."


@dataclass(frozen=True)
class Series:
    """One column of metrics.csv at its increasing steps; a progress value that was not logged is None."""

    step: list[float]
    tokens: list[float | None]
    seconds: list[float | None]
    flops: list[float | None]
    value: list[float]
    not_finite: int = 0

    def __len__(self) -> int:
        return len(self.value)

    def thinned(self, points: int) -> "Series":
        """At most `points` points: means over equal stretches, each placed at its stretch's end."""
        if len(self) <= points:
            return self
        edges = [round(k * len(self) / points) for k in range(points + 1)]
        ends = [edge - 1 for edge in edges[1:]]
        columns = {name: [getattr(self, name)[end] for end in ends] for name in PROGRESS}
        means = [fmean(self.value[start:end]) for start, end in pairwise(edges)]
        return Series(**columns, value=means, not_finite=self.not_finite)


EMPTY = Series([], [], [], [], [])


@dataclass(frozen=True)
class Run:
    """One run folder. `record` is its run.json; `validation` and `evaluation` are empty where the file is missing.

    `in_loop` holds the evaluations during training, one for each step.
    """

    directory: Path
    name: str
    record: dict[str, Any]
    metrics: dict[str, Series] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    in_loop: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    remarks: list[str] = field(default_factory=list)

    def get(self, *keys: str) -> Any:
        """A field of run.json by its path of keys, None where it is missing."""
        return dig(self.record, *keys)

    def series(self, column: str) -> Series:
        return self.metrics.get(column, EMPTY)

    def last(self, progress: str) -> float | None:
        """The furthest value of a progress column ("tokens", "seconds", "flops") among all that was logged."""
        values = [value for series in self.metrics.values() for value in getattr(series, progress)[-1:]]
        return max((value for value in values if value is not None), default=None)

    def median(self, column: str) -> float | None:
        values = self.series(column).value
        return median(values) if values else None

    def judged(self, metric: str) -> float | None:
        """The run's validation result ("loss", "perplexity", "bits_per_byte"): of validation.json, which covers the
        whole split, else the last that was logged in training."""
        if (value := number(self.validation.get(metric))) is not None:
            return value
        logged = self.series(f"val/{metric}").value
        return logged[-1] if logged else None

    @property
    def text(self) -> str:
        """Names what a validation loss is of: the corpus, and of labelled texts the labels."""
        return repr((self.get("data", "fingerprint"), self.get("data", "labels")))

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The evaluation's scores that name a task and hold a number."""
        return complete_scores(dig(self.evaluation, "pipeline", "scores"))

    def checkpoint_file(self) -> Path | None:
        """The checkpoint that the judgements name, else the best, else the last; None if none is on this disk."""
        named = [self.validation.get("checkpoint"), dig(self.evaluation, "pipeline", "checkpoint")]
        names = [Path(name).name for name in named if isinstance(name, str) and name]
        candidates = [name if name.endswith(".ckpt") else f"{name}.ckpt" for name in names]
        for name in [*candidates, "best.ckpt", "last.ckpt"]:
            if (path := self.directory / "checkpoints" / name).exists():
                return path
        return None

    def checkpoint_fingerprint(self) -> str | None:
        path = self.checkpoint_file()
        if path is not None and path.is_dir():
            path /= "manifest.json"  # It has the hashes of all other files.
        small_file = path is not None and path.is_file() and path.stat().st_size <= HASH_LIMIT_BYTES
        return sha256_file(path) if path is not None and small_file else None

    def results_fingerprint(self) -> str | None:
        return fingerprint([self.validation, self.evaluation]) if self.validation or self.evaluation else None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.record)


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Every run in or below a folder, by name, and a sentence for each run that could not be read.

    Raises InputError if the folder is missing or holds no readable run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give a run's folder or one that holds runs.")
    remarks: list[str] = []
    runs = []
    for path in sorted(folder.rglob("run.json")):
        record = read_object(path, remarks, because="so this run is left out")
        if record:
            runs.append(read_run(path.parent, name_below(folder, path.parent), record))
    if not runs:
        reason = f" ({remarks[0]})" if remarks else ""
        raise InputError(
            f"{folder} holds no run (a folder with a run.json){reason}: train one with python -m pipeline fit."
        )
    return runs, remarks


def name_below(folder: Path, directory: Path) -> str:
    """A run's name in the report: its path below the folder, which unlike the recorded name is never shared."""
    return directory.resolve().name if directory == folder else directory.relative_to(folder).as_posix()


def read_run(directory: Path, name: str, record: dict[str, Any]) -> Run:
    remarks: list[str] = []
    metrics = read_metrics(read_text(directory / "metrics.csv"))
    if not metrics:
        remarks.append("no metrics are logged yet")
    for column, series in metrics.items():
        if series.not_finite:
            remarks.append(f"{column} was not a finite number in {series.not_finite} rows")
    validation = read_object(directory / "validation.json", remarks, because="so the last logged validation stands in")
    evaluation = read_object(directory / "evaluation" / "results.json", remarks, because="so no scores are shown")
    in_loop = read_in_loop(read_text(directory / "evaluation" / "in_loop.jsonl"))
    samples, broken = read_samples(read_text(directory / "samples.jsonl"))
    if broken:
        remarks.append(f"{broken} of the lines of samples.jsonl could not be read")
    run = Run(
        directory=directory,
        name=name,
        record=record,
        metrics=metrics,
        validation=validation,
        evaluation=evaluation,
        in_loop=in_loop,
        samples=samples,
        config=read_text(directory / "config.yaml"),
        remarks=remarks,
    )
    if not validation:
        remarks.append("no whole-split validation yet, so the last logged validation stands in")
    tokens, planned = run.last("tokens"), number(run.get("total_tokens"))
    if tokens is not None and planned and tokens < 0.999 * planned:
        remarks.append(
            f"{tokens / planned:.0%} of the planned tokens are trained, so its results are of an unfinished run"
        )
    for part in ("tokenizer", "data_fingerprint"):
        scored = dig(evaluation, "pipeline", part)
        trained = run.get("data", "fingerprint" if part == "data_fingerprint" else part)
        if scored and trained and scored != trained:
            remarks.append(f"its scores name another {part.replace('_', ' ')} than the run was trained with")
    return run


def read_metrics(text: str) -> dict[str, Series]:
    """The columns of a metrics.csv that hold at least one value.

    A last line without its end is still being written, and may lack digits: it is dropped. A step that does not rise
    marks a resume: the rows from that step on, logged by a run that was then lost, make way for the new ones.
    """
    whole_lines = text[: text.rfind("\n") + 1].replace("\0", "")
    rows = csv.DictReader(io.StringIO(whole_lines))
    points: dict[str, list[tuple[float, dict[str, float | None], float]]] = {}
    not_finite: dict[str, int] = {}
    for row in rows:
        progress = {name: parse(row.get(name)) for name in PROGRESS}
        step = progress["step"]
        if step is None:
            continue
        for column, cell in row.items():
            if not isinstance(column, str) or column in PROGRESS or not isinstance(cell, str) or not cell:
                continue
            value = parse(cell)
            if value is None:
                not_finite[column] = not_finite.get(column, 0) + 1
                continue
            kept = points.setdefault(column, [])
            while kept and kept[-1][0] >= step:
                kept.pop()
            kept.append((step, progress, value))
    return {
        column: Series(
            step=[step for step, _, _ in kept],
            tokens=[progress["tokens"] for _, progress, _ in kept],
            seconds=[progress["seconds"] for _, progress, _ in kept],
            flops=[progress["flops"] for _, progress, _ in kept],
            value=[value for _, _, value in kept],
            not_finite=not_finite.get(column, 0),
        )
        for column, kept in points.items()
    }


def read_samples(text: str) -> tuple[list[dict[str, Any]], int]:
    """The generate calls of a samples.jsonl, newest first, and the number of lines that could not be read."""
    samples, broken = [], 0
    for sample in read_lines(text):
        if isinstance(sample, dict) and isinstance(sample.get("completions"), list):
            samples.append(sample)
        else:
            broken += 1
    return samples[::-1], broken


def read_in_loop(text: str) -> list[dict[str, Any]]:
    """The evaluations during training by rising step; what a resume did again replaces what the lost attempt had."""
    kept: list[dict[str, Any]] = []
    # A last line without its end is still being written.
    for record in read_lines(text[: text.rfind("\n") + 1]):
        if isinstance(record, dict) and (step := number(record.get("step"))) is not None:
            kept = [earlier for earlier in kept if earlier["step"] < step]
            kept.append(record | {"scores": complete_scores(record.get("scores"))})
    return kept


def complete_scores(scores: Any) -> list[dict[str, Any]]:
    """Those of a list of scores that name a task and hold a number."""
    complete = [s for s in scores if isinstance(s, dict) and s.get("task")] if isinstance(scores, list) else []
    return [score for score in complete if number(score.get("score")) is not None]


def best(runs: list[Run], value: Callable[[Run], float | None]) -> Run | None:
    """The run with the lowest value; None if no run has one."""
    valued = [(found, run) for run in runs if (found := value(run)) is not None]
    return min(valued, key=lambda pair: pair[0])[1] if valued else None


def of_one_text(runs: list[Run]) -> bool:
    """Whether the validation losses of these runs are of the same text, so that they can be compared."""
    return len({run.text for run in runs}) <= 1
