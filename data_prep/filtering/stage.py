"""The filters of a corpus in their order, over one source: what is kept, what is dropped and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import document
from data_prep.document import (
    DocumentFile,
    DocumentWriter,
    hashed_files,
    link_documents,
    path_name,
    text_lengths,
    total_of,
)
from data_prep.files import InputError, atomic_path
from data_prep.filtering.c4 import C4
from data_prep.filtering.classifier import Classifier, Scores
from data_prep.filtering.fineweb import FineWeb
from data_prep.filtering.gopher import GopherQuality, GopherRepetition
from data_prep.filtering.language import Language
from data_prep.filtering.privacy import Masking
from data_prep.filtering.repair import repair
from data_prep.filtering.rules import Verdict
from data_prep.filtering.words import Texts, Vocabulary, Words
from data_prep.stages import fill_folder
from data_prep.units import Phase, Steps, Unit, link
from data_prep.workers import workers as running

DROPPED = "dropped.parquet"

PIECE_BYTES = 2**20
"""Texts are looked at so many bytes at a time, which stay in a processor's cache; a longer text is looked at alone.

The arrays about them take about 35 bytes of memory for each byte."""


@dataclass(frozen=True)
class FilterConfig:
    """Which filters there are; `{}` for one with its usual limits. They come in the order in which they are listed here."""

    sources: tuple[str, ...] | None = None
    """Sources that are filtered, where not all are."""
    repair: bool = False
    """Mend wrongly decoded text with ftfy."""
    language: Language | None = None
    """Keep texts of some languages."""
    gopher_repetition: GopherRepetition | None = None
    """Gopher's rules of repetition."""
    gopher_quality: GopherQuality | None = None
    """Gopher's rules of quality."""
    c4: C4 | None = None
    """C4's rules, which also drop lines from texts."""
    fineweb: FineWeb | None = None
    """FineWeb's own rules."""
    classifier: Classifier | None = None
    """GPT-3's classifier of reference and raw text."""
    masking: Masking | None = None
    """Replace e-mail and IP addresses."""
    keep_dropped: bool = False
    """Write dropped documents to the folder `dropped`, with the rule and the reason."""

    def of(self, source: str) -> bool:
        """Whether there is anything to do for this source."""
        rules = (self.language, self.gopher_repetition, self.gopher_quality, self.c4, self.fineweb, self.masking)
        wanted = self.repair or any(rule is not None for rule in rules) or self.classifies(source)
        return wanted and (self.sources is None or source in self.sources)

    def classifies(self, source: str) -> bool:
        """Whether the classifier judges this source."""
        here = self.sources is None or source in self.sources
        return here and self.classifier is not None and source not in self.classifier.reference

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as JSON has it."""
        return {name: value for name, value in asdict(self).items() if name != "sources"}


class Filtered(NamedTuple):
    """A batch of documents after the filters."""

    kept: pa.RecordBatch
    dropped: pa.RecordBatch
    """As they came, with the columns `rule` and `reason`."""
    counts: Counter[tuple[str, ...]]
    """Dropped documents by rule and reason, dropped lines by `c4_lines` and reason, changed documents by `changed` and filter."""


class Filters:
    """The filters of a configuration, for any number of batches; what is decided on a document depends on it alone."""

    def __init__(self, config: FilterConfig, scores: Scores | None = None):
        self.config, self.scores = config, scores
        self.vocabulary = Vocabulary()

    def apply(self, batch: pa.RecordBatch) -> Filtered:
        """Filter documents with the columns `id`, `text` and `source`."""
        config, counts = self.config, Counter()
        texts = batch.column("text")
        outcome: list[tuple[str, str] | None] = [None] * batch.num_rows
        alive = np.arange(batch.num_rows)

        def settle(rule: str, verdict: Verdict) -> None:
            """Take out what a rule dropped."""
            nonlocal alive, texts
            for k, reason in zip(alive.tolist(), verdict.names(), strict=True):
                if reason is not None:
                    outcome[k] = rule, reason
                    counts[rule, reason] += 1
            if not verdict.kept.all():
                texts, alive = texts.filter(pa.array(verdict.kept)), alive[verdict.kept]

        if config.repair:
            texts, counts["changed", "repair"] = repair(texts)
        if config.language:
            verdict = Verdict(len(texts))
            config.language.decide(texts, verdict)
            settle("language", verdict)
        if config.gopher_repetition:
            verdict = Verdict(len(texts))
            config.gopher_repetition.decide_lines(Texts(texts), verdict)
            settle("gopher_repetition", verdict)
        if config.gopher_repetition or config.gopher_quality:
            # Words are cut once for both, and not of what its lines have dropped.
            content, words = self.words(texts)
            runs, quality = Verdict(len(texts)), Verdict(len(texts))
            if config.gopher_repetition:
                config.gopher_repetition.decide_runs(content, words, runs)
            if config.gopher_quality:
                config.gopher_quality.decide(content, words, quality)
            settle("gopher_repetition", runs)
            settle("gopher_quality", quality.where(runs.kept))
        if config.c4:
            verdict = Verdict(len(texts))
            texts, lines = config.c4.edit(Texts(texts), self.vocabulary, verdict)
            counts.update({("c4_lines", reason): count for reason, count in lines.items()})
            settle("c4", verdict)
        if config.fineweb:
            verdict = Verdict(len(texts))
            config.fineweb.decide(*self.words(texts), verdict)
            settle("fineweb", verdict)
        if self.scores:
            verdict = Verdict(len(texts))
            self.scores.decide(batch.column("id").take(pa.array(alive)), texts, verdict)
            settle("classifier", verdict)
        if config.masking:
            texts, counts["changed", "masking"] = config.masking.mask(texts)

        dropped = np.setdiff1d(np.arange(batch.num_rows), alive)
        aside = batch.take(pa.array(dropped))
        reasons = [outcome[k] or ("", "") for k in dropped.tolist()]
        for at, name in enumerate(("rule", "reason")):
            aside = aside.append_column(name, pa.array([reason[at] for reason in reasons], pa.string()))
        kept = batch.take(pa.array(alive)).set_column(batch.schema.get_field_index("text"), "text", texts)
        return Filtered(kept, aside, counts)

    def words(self, column: pa.Array) -> tuple[Texts, Words]:
        texts = Texts(column)
        return texts, self.vocabulary.words(texts)


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in slices of a bounded number of bytes, one document at least."""
    lengths = text_lengths(batch.column("text"))
    first = size = 0
    for k, length in enumerate(lengths.tolist()):
        if size and size + length > PIECE_BYTES:
            yield batch.slice(first, k - first)
            first, size = k, 0
        size += length
    if first < batch.num_rows:
        yield batch.slice(first)


def filtering(
    files: Sequence[DocumentFile], source: str, config: FilterConfig, scores: Path | None, trained: str | None
) -> Steps:
    """The stage that filters one source, a file a unit.

    `scores` is the file of the trained classifier, where the configuration has one for this source, and `trained` its digest.
    """
    units = [
        Unit(
            file.name,
            partial(filter_file, file.path, source, config, scores, trained),
            [file.digest, trained],
            file.bytes,
        )
        for file in files
    ]
    outputs = yield Phase("filter", 1, [source, config.settings()], units)

    def fill(target: Path) -> dict[str, Any]:
        link_documents([output.folder for output in outputs], source, target)
        record = total_of((output.record for output in outputs), "dropped")
        if config.keep_dropped:
            for number, output in enumerate(output for output in outputs if DROPPED in output.files):
                link(output.folder / DROPPED, target / "dropped" / path_name(source, number))
        reasons = {rule: dict(sorted(counts.items())) for rule, counts in sorted(record.pop("reasons", {}).items())}
        return {**record, "reasons": reasons}

    return fill


def filter_source(folder: Path, source: str, config: FilterConfig, scores: Path | None, target: Path) -> dict[str, Any]:
    """Filter a source's documents into a folder, without a stage around it."""
    with running(1) as pool:
        return fill_folder(filtering(hashed_files(folder, source), source, config, scores, None), target, pool)


def filter_file(
    path: Path, source: str, config: FilterConfig, scores: Path | None, trained: str | None, target: Path
) -> dict[str, Any]:
    """Copy what the filters keep of a file; returns what was kept, and what was dropped by rule and reason."""
    filters, counts, dropped = prepared(config, scores, trained), Counter(), 0
    with DocumentWriter(target, source) as writer, DroppedWriter(target / DROPPED) as aside:
        for batch in document.read_file(path):
            for piece in pieces(batch):
                kept, gone, found = filters.apply(piece)
                writer.add(kept)
                counts.update(found)
                dropped += gone.num_rows
                if config.keep_dropped:
                    aside.add(gone)
    by_rule: dict[str, dict[str, int]] = {}
    for (rule, reason), count in sorted(counts.items()):
        by_rule.setdefault(rule, {})[reason] = count
    return {**writer.record, "dropped": dropped, "reasons": by_rule}


@lru_cache(1)
def prepared(config: FilterConfig, scores: Path | None, trained: str | None) -> Filters:
    """The filters, which know words that they have seen before; `trained` tells apart what `scores` may hold at one time and another."""
    classifier = Scores.load(scores, config.classifier.alpha) if config.classifier and scores else None
    return Filters(config, classifier)


def require_some(records: dict[str, dict[str, Any]]) -> None:
    """Raise InputError where sources were filtered, by their records, and no document of any is left."""
    if not records or any(record["documents"] for record in records.values()):
        return
    counts = Counter[str]()
    for record in records.values():
        for rule, reasons in record["reasons"].items():
            counts.update({} if rule in ("c4_lines", "changed") else reasons)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    raise InputError(
        f"The filters drop every document of {', '.join(records)} ({reasons}): change their limits in `filter`, "
        "or name the sources to filter in `filter.sources`."
    )


class DroppedWriter:
    """Writes documents that were dropped to one Parquet file, if there are any. A context manager."""

    def __init__(self, path: Path):
        self.path = path
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "DroppedWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        if self._writer is None:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._writer = self._stack.enter_context(pq.ParquetWriter(temporary, batch.schema, compression="zstd"))
        writer: pq.ParquetWriter = self._writer
        writer.write_batch(batch)
