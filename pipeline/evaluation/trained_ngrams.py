"""The N-grams that a run has trained on, in an index on disk beside the run: built once, and good for every task and every checkpoint.

Each N-gram has the step by which it was read first, so whether a checkpoint had read it is a comparison. A run that has gone on since
gets a further table for its later steps. RUN/evaluation/ngrams/ holds a folder for each N and each order of samples, and in
it a folder for each range of steps, which is whole under its name.
"""

import errno
import fcntl
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.files import InputError, fingerprint, read_json, sync, write_json
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import open_state
from pipeline.data import TokenDataModule
from pipeline.evaluation.ngram_table import TYPES, Grams, Table, write_table
from pipeline.evaluation.trained_text import TrainedText
from pipeline.inspection.provenance import Provenance
from pipeline.spikes import StepRanges

FORMAT = 1

OnProgress = Callable[[int, int], None]
"""Is told how many of how many tokens have been looked at."""


@dataclass(frozen=True)
class Reading:
    """What a run read up to a checkpoint, and as far beyond as it has got since."""

    run: Path
    step: int
    """Of the checkpoint."""
    text: TrainedText
    left_out: StepRanges
    provenance: Provenance

    @property
    def order_since(self) -> int:
        """Steps at the beginning of the run of which nothing is known, since something was allowed to change after them."""
        return min(self.step, self.text.data.order_since)


def reading_of(run: Path, checkpoint: Path) -> Reading:
    """What a run had read at a checkpoint.

    Raises:
        InputError: its token folders are gone or are others now, or there is no config.yaml.
    """
    record = open_state(checkpoint).record
    step, left_out = record["step"], StepRanges(record.get("skipped", []))
    last = run / "checkpoints" / "last.ckpt"
    if last.exists():
        # So that the index is good for all of the run; but a run that went back to pass over steps has read others since.
        later = open_state(last).record
        skipped = StepRanges(later.get("skipped", []))
        if later["step"] > step and skipped.up_to(step).ranges == left_out.ranges:
            record, left_out = later, skipped
    try:
        with redirect_stdout(sys.stderr):  # What laying out the data has to say does not belong to the answer.
            data = TokenDataModule.of_run(run)
            data.go_on_from(record)
    except InputError as error:
        raise InputError(f"What {run} has trained on is not at hand to look for the questions in it. {error}") from None
    text = TrainedText(data, Tokenizer.load(run), record["step"], left_out)
    return Reading(run, step, text, left_out, Provenance(run, data))


class TrainedNgrams:
    """The index of a run's N-grams, for all of its checkpoints that lie in the same order of samples.

    Args:
        tables: of ranges of steps that follow one another.
    """

    def __init__(self, n: int, reading: Reading, tables: list[Table]):
        self.n, self.reading, self.tables = n, reading, tables

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    @property
    def bytes(self) -> int:
        return sum(table.bytes for table in self.tables)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, Grams]:
        """Which of these hashes were read up to the checkpoint (indices into them), and by which step first, and where."""
        found = [table.find(hashes) for table in self.tables]
        indices = np.concatenate([np.empty(0, np.int64), *(indices for indices, _ in found)])
        grams = Grams.joined([Grams(*(np.empty(0, kind) for kind in TYPES.values())), *(grams for _, grams in found)])
        # Later tables have what was read again, too: of equals the earliest step counts.
        rows = np.lexsort((grams.steps, indices))
        rows = rows[np.append(True, np.diff(indices[rows]) != 0)[: len(rows)]]
        rows = rows[grams.steps[rows] <= self.reading.step]
        return indices[rows], grams.take(rows)


def trained_ngrams(reading: Reading, n: int, on_progress: OnProgress | None = None) -> TrainedNgrams:
    """The index of a run, opened, after what it lacks was added.

    It takes 20 bytes of disk for each different N-gram, twice while it is made; text has about one N-gram in six bytes. Memory does not
    grow with the text, but for four bytes a pair in a run on pairs.

    Raises:
        InputError: the disk is full.
    """
    data, text = reading.text.data, reading.text
    order = {
        "format": FORMAT,
        "n": n,
        "data": data.identity(),
        "batches": data.batches.history(),
        "since": data.order_since,
    }
    folder = reading.run / "evaluation" / "ngrams" / f"{n}-grams-{fingerprint(order)[:12]}"
    with alone(folder):
        tables, covered = tables_of(folder, reading)
        if covered < reading.step:
            left_out = reading.left_out.as_lists()
            about = {**order, "after": covered, "to": text.steps, "left_out": left_out}
            final = folder / f"steps-{covered}-{text.steps}-{fingerprint(left_out)[:8]}"
            tables.append(build(final, about, text.ngrams(n, covered, counting(on_progress, text.tokens))))
    return TrainedNgrams(n, reading, tables)


def build(final: Path, about: dict, source: Iterator[Grams]) -> Table:
    """Write a table that is whole as soon as its folder has this name."""
    partial = final.with_name(f".{final.name}.partial")
    for left in final.parent.glob(".*.partial"):  # Of a build that was killed: this one is alone.
        shutil.rmtree(left)
    partial.mkdir()
    try:
        write_table(partial, source)
        for name in TYPES:
            sync(partial / f"{name}.bin")
        write_json(partial / "about.json", {**about, "ngrams": len(Table(partial))})
        shutil.rmtree(final, ignore_errors=True)  # A damaged one.
        partial.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"The disk that holds {final.parent} is full: an index of N-grams takes about three times the text that was trained on, "
            "and twice as much while it is made; make room, or evaluate without contamination"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(final.parent)
    return Table(final)


def tables_of(folder: Path, reading: Reading) -> tuple[list[Table], int]:
    """The tables that follow one another from the first step on, and up to which step they reach."""
    there = [(read_json(path / "about.json"), Table(path)) for path in sorted(folder.glob("steps-*")) if whole(path)]
    tables, covered = [], 0
    while following := [
        (about["to"], table)
        for about, table in there
        if about["after"] == covered < about["to"] and same_steps(StepRanges(about["left_out"]), about["to"], reading)
    ]:
        covered, table = max(following, key=lambda each: each[0])
        tables.append(table)
    return tables, covered


def same_steps(left_out: StepRanges, to: int, reading: Reading) -> bool:
    """Whether a table up to a step leaves out the steps that the run has left out, as far as both know."""
    known = min(to, reading.text.steps)
    return left_out.up_to(known).ranges == reading.left_out.up_to(known).ranges


def whole(path: Path) -> bool:
    """Whether a table has the files and sizes that it was written with."""
    try:
        count = read_json(path / "about.json")["ngrams"]
        sizes = [(path / f"{name}.bin").stat().st_size for name in TYPES]
    except (OSError, InputError, KeyError):
        return False
    return sizes == [count * np.dtype(kind).itemsize for kind in TYPES.values()]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from building in a folder; it is left to them also when this one is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
    except OSError as error:
        raise InputError(
            f"The index of N-grams cannot be written to {folder} ({error.strerror}): make the run's folder writable, or evaluate "
            "without contamination"
        ) from None
    with file:
        with suppress(OSError):  # Some file systems of clusters know no locks.
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def counting(on_progress: OnProgress | None, total: int) -> Callable[[int], None]:
    """Adds up what it is told."""
    done = 0

    def count(tokens: int) -> None:
        nonlocal done
        done += tokens
        if on_progress is not None:
            on_progress(done, total)

    return count
