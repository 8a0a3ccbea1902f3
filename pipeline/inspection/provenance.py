"""What a run has trained on: the documents behind a step's batch, and the steps that read a document."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.files import InputError
from data_prep.shards import REMAKE, Manifest, Shard
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import find_checkpoint, open_state
from pipeline.data import SIZES, TokenDataModule
from pipeline.spikes import StepRanges, decisions


@dataclass(frozen=True)
class Document:
    """A document of the train split."""

    part: int
    """Where it is in the mixture; 0 without one."""
    number: int
    """In the train split or, of a mixture, in its part."""
    name: str
    """The number, of a mixture after the part's name: `books:17`."""
    id: str | None
    """As `data_prep` knows it; None where its Parquet files are gone."""
    source: str
    shard: str
    offset: int
    """Its first token in the shard."""
    tokens: int


@dataclass(frozen=True)
class Passage:
    """What a sample reads of one document."""

    document: Document
    offset: int
    """Its first token in the document's shard."""
    tokens: int
    text: str
    target: str | None = None
    """Of a pair, its other side."""


@dataclass(frozen=True)
class Sample:
    position: int
    """In the run's order."""
    passages: list[Passage]


class Provenance:
    """A run's samples, traced to their documents.

    Args:
        run: its directory; the token folders that its config.yaml names must be as they were.
        data: the same, where the caller is the run itself.

    Attributes:
        done: optimizer steps that its last checkpoint has had.
        steps: that it has when it is complete.
        left_out: steps that changed nothing, because of a spike.
        reordered: what decides the order of samples and may have been another in earlier steps, which no record tells.

    Raises:
        InputError: no run, or its tokens are gone or are others now.
    """

    def __init__(self, run: Path, data: TokenDataModule | None = None):
        self.run, self.data, self.done = run, data or TokenDataModule.of_run(run), 0
        self.tokenizer = Tokenizer.load(run)
        self.left_out = StepRanges()
        if data is None and (run / "checkpoints" / "last.ckpt").exists():
            record = open_state(find_checkpoint(run, "last")).record
            self.data.go_on_from(record)
            self.done = record["step"]
            self.left_out = StepRanges([*record.get("skipped", []), *decisions(run)["ranges"]])
        self.steps = self.data.steps
        self.reordered = sorted(set(self.data.allow_changes) - {*SIZES})

    def batch(self, step: int, first: int | None = None) -> list[Sample]:
        """The samples of a step, counted from 1 as in metrics.csv, or only the first so many of them.

        Raises:
            InputError: the run has no such step.
        """
        if not 1 <= step <= self.steps:
            raise InputError(f"There is no step {step}: {self.run} has steps 1 to {self.steps}")
        if step <= self.data.order_since:
            raise InputError(
                f"{self.run} read its samples in another order up to step {self.data.order_since}, before data.allow_changes: "
                "only the steps since then can be traced"
            )
        positions = np.arange(self.data.position_at(step - 1), self.data.position_at(step))[:first]
        spans = self.data.samples.spans(positions)
        numbers = [self._numbers(*span) for span in spans]
        documents = self.documents({(part, k) for (part, _, _), ks in zip(spans, numbers, strict=True) for k in ks})
        return [
            Sample(position, [self._passage(documents[part, k], start, length) for k in ks])
            for position, (part, start, length), ks in zip(positions.tolist(), spans, numbers, strict=True)
        ]

    def _numbers(self, part: int, start: int, length: int) -> range:
        if self.data.order == "pairs":
            return range(start, start + length)
        return self.data.parts[part].documents_of(start, length)

    def _passage(self, document: Document, start: int, length: int) -> Passage:
        reader = self.data.parts[document.part]
        if self.data.order == "pairs":
            text, target = (self._text(ids) for ids in reader.sequences(document.number))
            return Passage(document, document.offset, document.tokens, text, target)
        first = reader.place(document.number).start
        begin, end = max(start, first), min(start + length, first + document.tokens)
        text = self._text(reader.read(begin, end - begin))
        return Passage(document, document.offset + begin - first, end - begin, text)

    def _text(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids[:-1] if ids[-1] == self.tokenizer.end_of_text else ids)

    def documents(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], Document]:
        """Documents by part and number."""
        places = {key: self.data.parts[key[0]].place(key[1]) for key in wanted}
        before = [documents_before(reader.shards) for reader in self.data.parts]
        by_source: defaultdict[tuple[int, str], dict[tuple[int, int], int]] = defaultdict(dict)
        for (part, number), place in places.items():
            by_source[part, place.shard.source][part, number] = before[part][place.shard.file] + place.row
        ids: dict[tuple[int, int], str] = {}
        for (part, source), rows in by_source.items():
            known = self._manifest(part).ids("train", source, set(rows.values()))
            ids |= {key: known[row] for key, row in rows.items() if row in known}
        return {
            key: Document(
                *key, self._name(*key), ids.get(key), place.shard.source, place.shard.file, place.offset, place.tokens
            )
            for key, place in places.items()
        }

    def _manifest(self, part: int) -> Manifest:
        return list(self.data.part_manifests.values())[part]

    def _name(self, part: int, number: int) -> str:
        return str(number) if self.data.mixture is None else f"{list(self.data.part_manifests)[part]}:{number}"

    def find(self, name: str) -> Document:
        """The document of a number (of a mixture, part:number) or of an id.

        Raises:
            InputError: there is none in the train split.
        """
        part, _, number = name.rpartition(":")
        names = [""] if self.data.mixture is None else list(self.data.part_manifests)
        by_number = part in names and number.isdecimal()
        key = (names.index(part), int(number)) if by_number else self._find_id(name)
        return self.documents({key})[key]

    def _find_id(self, id: str) -> tuple[int, int]:
        for part, reader in enumerate(self.data.parts):
            for source in dict.fromkeys(shard.source for shard in reader.shards):
                row = self._manifest(part).find_id("train", source, id)
                if row is not None:
                    return part, number_of(reader.shards, source, row)
        form = "a number" if self.data.mixture is None else "part:number"
        raise InputError(
            f"No document of the train split of {self.data.path} has the id {id!r}, as far as Parquet files beside the shards tell: "
            f"give its id, or {form} as --step shows it"
        )

    def reads(self, document: Document) -> dict[int, list[int]]:
        """The steps of the whole run, counted from 1, that read a document, with the positions of those samples."""
        start, stop = document.number, document.number + 1
        if self.data.order != "pairs":
            start = self.data.parts[document.part].place(document.number).start
            stop = start + document.tokens
        below = self.data.position_at(self.steps)
        steps: defaultdict[int, list[int]] = defaultdict(list)
        for position in self.data.samples.positions(start, stop, below=below, part=document.part):
            steps[self.data.batches.step_of(position) + 1].append(position)
        return {step: positions for step, positions in steps.items() if step > self.data.order_since}


def documents_before(shards: tuple[Shard, ...]) -> dict[str, int]:
    """How many documents of the same source stand before each shard."""
    counts: defaultdict[str, int] = defaultdict(int)
    before = {}
    for shard in shards:
        before[shard.file] = counts[shard.source]
        counts[shard.source] += shard.documents
    return before


def number_of(shards: tuple[Shard, ...], source: str, row: int) -> int:
    """The number among all documents of the one that is `row` in its source."""
    first = 0
    for shard in shards:
        if shard.source == source:
            if row < shard.documents:
                return first + row
            row -= shard.documents
        first += shard.documents
    raise InputError(f"The Parquet files beside the shards have more documents of {source} than these: {REMAKE}")
