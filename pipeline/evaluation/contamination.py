"""Whether a model had seen the questions: N-gram collisions with the text that it trained on up to its checkpoint.

As Brown et al. 2020, appendix C, have it: an example is dirty where any N consecutive words of it stand in the training text, with an N
of each task. Other than there, only text that was really read counts, not all that lay ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep.files import InputError
from data_prep.ngrams import find_words, ngram_hashes, words_of
from pipeline.checkpoint import LoadedRun, find_checkpoint
from pipeline.evaluation.trained_ngrams import OnProgress, Reading, TrainedNgrams, reading_of, trained_ngrams

SMALLEST_N, LARGEST_N = 8, 13

FORM_EXAMPLES = 10
"""Of so many examples or more, what more than half have in common is not theirs, but the words in which all are asked."""


@dataclass(frozen=True)
class Mark:
    """Whether an example was in the training text."""

    dirty: bool | None
    """None where nothing was found, but some of what the model has read is not known."""
    short: bool = False
    """Whether it has fewer than N words and so cannot collide; it counts as clean."""
    ngram: str | None = None
    """Of a dirty one the words that were read first."""
    step: int | None = None
    """The step that read them first, of those up to the checkpoint."""
    document: str | None = None
    """Where they were read: a document's id or, where that is not at hand, its number, as `inspect --document` takes it."""
    run: str | None = None
    """The run that read them, where it is not the run itself but one whose weights it began with."""


def choose_n(texts: Sequence[str]) -> int:
    """N of a task: the 5th percentile of its examples' lengths in words, but from 8 to 13 (Brown et al. 2020, appendix C).

    The percentile is a length that occurs (numpy's `lower`): so at least 95 % of the examples have N words or more, unless the
    least N is above it.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("There is no example to choose an N for")
    lengths = [len(find_words(text).starts) for text in texts]
    return int(np.clip(np.percentile(lengths, 5, method="lower"), SMALLEST_N, LARGEST_N))


class Contamination:
    """What a checkpoint has read, to look for examples in it.

    Args:
        loaded: the run; its token folders must be at hand.
        on_progress: is told how far the building of an index is.

    Attributes:
        unknown: why some of what the model has read is not known, in a sentence; None where all is.

    Raises:
        InputError: what the run has trained on is not at hand.
    """

    def __init__(self, loaded: LoadedRun, on_progress: OnProgress | None = None):
        self.on_progress = on_progress
        self.readings = [reading_of(loaded.directory, loaded.checkpoint)]
        self.unknown: str | None = None
        try:
            self.add_runs_before(loaded.directory)
        except InputError as error:
            self.unknown = f"{loaded.directory} began with the weights of another run. {error}"
        for reading in self.readings:
            if reading.order_since:
                self.unknown = f"What {reading.run} read in its first {reading.order_since:,} steps, before data.allow_changes, is not known"
        self.indices: dict[int, list[TrainedNgrams]] = {}

    def add_runs_before(self, run: Path) -> None:
        """The run whose weights this one began with, and the one that that began with, and so on."""
        seen = {run.resolve()}
        while (before := pretrained(run)) is not None and before.resolve() not in seen:
            self.readings.append(reading_of(before, find_checkpoint(before)))
            seen.add(before.resolve())
            run = before

    def index(self, n: int) -> list[TrainedNgrams]:
        """The N-grams that were read, of the run itself and of those before; built where they are not there yet."""
        if n not in self.indices:
            self.indices[n] = [trained_ngrams(reading, n, self.on_progress) for reading in self.readings]
        return self.indices[n]

    def marks(self, texts: Sequence[str], n: int) -> list[Mark]:
        """For each example whether the model had read N consecutive words of it, and which, and when."""
        words = [words_of(text) for text in texts]
        hashes = [ngram_hashes(find_words(text).hashes, n) for text in texts]
        hashes = without_form(hashes)
        clean = None if self.unknown else False
        marks = [Mark(clean if len(each) >= n else False, short=len(each) < n) for each in words]
        for number, index in enumerate(self.index(n)):
            pending = [place for place, mark in enumerate(marks) if not mark.dirty]
            found = collisions(index, [words[place] for place in pending], [hashes[place] for place in pending])
            for place, mark in found.items():
                marks[pending[place]] = replace(mark, run=str(index.reading.run) if number else None)
        return marks

    def about(self) -> dict[str, Any]:
        """For the record: what was looked at, and the size of each index that was used."""
        indices = {
            str(n): {"ngrams": sum(map(len, each)), "bytes": sum(index.bytes for index in each)}
            for n, each in sorted(self.indices.items())
        }
        runs = [
            {"run": str(reading.run), "step": reading.step, "tokens": reading.text.tokens} for reading in self.readings
        ]
        return {"read": runs, "unknown": self.unknown, "indices": indices}


def collisions(index: TrainedNgrams, words: list[list[str]], hashes: list[np.ndarray]) -> dict[int, Mark]:
    """The dirty ones of several examples, given their words and the hashes of their N-grams.

    The text at a hit is compared, so that equal hashes of different words make no example dirty.
    """
    lengths = np.array([len(each) for each in hashes], np.int64)
    begins = np.cumsum(lengths) - lengths
    different, inverse = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_inverse=True)
    known, grams = index.find(different)
    row_of = np.full(len(different), -1)
    row_of[known] = np.arange(len(known))
    dirty: dict[int, tuple[str, int, int]] = {}
    for number, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True)):
        rows = row_of[inverse[begin : begin + length]]
        hits = np.flatnonzero(rows >= 0)
        for first in hits[np.argsort(grams.steps[rows[hits]], kind="stable")].tolist():
            step, place = int(grams.steps[rows[first]]), int(grams.places[rows[first]])
            ngram = words[number][first : first + index.n]
            if stands(index.reading, ngram, place):
                dirty[number] = " ".join(ngram), step, place
                break
    return named(index.reading, dirty)


def without_form(hashes: list[np.ndarray]) -> list[np.ndarray]:
    """The hashes of several examples' N-grams with 0 for those in more than half of FORM_EXAMPLES or more: of the prompt's form."""
    if len(hashes) < FORM_EXAMPLES:
        return hashes
    values, counts = np.unique(np.concatenate([np.unique(each) for each in hashes]), return_counts=True)
    form = values[counts > len(hashes) / 2]
    return [np.where(np.isin(each, form), np.uint64(0), each) for each in hashes]


def stands(reading: Reading, ngram: list[str], place: int) -> bool:
    """Whether these words stand at a place of the training text, where its token may begin with the end of another word."""
    text = reading.text.read(place, lambda text: len(words_of(text)) > len(ngram) + 1)
    there = words_of(text)
    return ngram in (there[: len(ngram)], there[1 : len(ngram) + 1])


def named(reading: Reading, dirty: dict[int, tuple[str, int, int]]) -> dict[int, Mark]:
    """Marks of dirty examples, given words, step and place of each."""
    keys = {number: reading.text.document(place) for number, (_, _, place) in dirty.items()}
    documents = reading.provenance.documents(set(keys.values()))
    return {
        number: Mark(True, False, ngram, step, documents[keys[number]].id or documents[keys[number]].name)
        for number, (ngram, step, _) in dirty.items()
    }


def pretrained(run: Path) -> Path | None:
    """The run whose weights a run began with, as its config.yaml names it."""
    content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    path = content["model"].get("pretrained")
    return None if path is None else Path(path)


def example_text(task: Any, document: dict[str, Any]) -> str:
    """An example of a harness task as it could stand in a training text: its question and its right answers.

    The question is what the task's `doc_to_decontamination_query` names, where it has one; else its prompt.
    """
    choices = [str(choice) for choice in task.doc_to_choice(document)] if task.config.doc_to_choice is not None else []
    question = task.doc_to_text(document)
    target = task.doc_to_target(document)
    if isinstance(question, int):  # Choices of a question that ends alike, as Winogrande has them.
        question = choices[question] if 0 <= question < len(choices) else ""
        choices = []
    if task.should_decontaminate():
        question = task.doc_to_decontamination_query(document)
    targets = target if isinstance(target, list | tuple) else [target]
    answers = [choices[each] if isinstance(each, int) and each < len(choices) else str(each) for each in targets]
    return "\n".join([str(question), *answers])
