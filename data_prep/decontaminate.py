"""Decontamination: passages that training documents share with test sets are cut out (Brown et al. 2020, appendix C).

A first pass finds every N-gram of the tests in the corpus and counts the documents that have it; a second cuts the documents.
Between them stand, in memory, the tests' N-grams with their counts, and on disk a record of 29 bytes for each hit.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep import document
from data_prep.collisions import HITS, TestNgrams, documents_with, find_hits
from data_prep.cutting import REMOVED, Cutter
from data_prep.document import DocumentWriter
from data_prep.files import InputError, atomic_path
from data_prep.sources import listing
from data_prep.test_sets import file_examples, harness_version, local_test_files, task_examples, unread_files


@dataclass(frozen=True)
class DecontaminateConfig:
    """What is taken out of the documents because models are tested on it. Off without `files` and `tasks`."""

    files: list[str] = field(default_factory=list)
    """Test data: paths, patterns, or folders with all files in them: .jsonl, .json, .csv, .tsv, .parquet, .txt, also .gz.
    A row is an example; of .txt the whole file."""
    columns: list[str] = field(default_factory=list)
    """Columns whose text counts, in this order, of the files that have them. Empty: all columns with text."""
    tasks: list[str] = field(default_factory=list)
    """Tasks or groups of lm-evaluation-harness by name: all text of their test and validation parts."""
    include: str | None = None
    """A folder with YAMLs of further tasks."""
    n: int = 13
    """Words of an N-gram that is looked for."""
    least_words: int = 13
    """An example with fewer than `n` words is looked for as a whole if it has so many, and else not at all. With 13 none is,
    as in the paper; 8 is the least that its analysis of overlaps takes."""
    margin_characters: int = 200
    """Characters removed on each side of a match."""
    piece_characters: int = 200
    """A piece that is left with fewer characters is dropped."""
    most_splits: int = 10
    """A document from which more passages than this would be removed is dropped whole."""
    most_documents: int = 10
    """An N-gram that stands in more documents than this is common, and ignored."""

    def __post_init__(self) -> None:
        if self.n < 1 or not 1 <= self.least_words <= self.n:
            raise InputError(
                f"decontaminate.n is {self.n} and least_words {self.least_words}: both are at least 1, and least_words no more than n."
            )
        for name in ("margin_characters", "piece_characters", "most_splits", "most_documents"):
            if getattr(self, name) < 0:
                raise InputError(f"decontaminate.{name} is {getattr(self, name)}: it must be at least 0.")
        if not self.wanted and (self.columns or self.include):
            raise InputError("decontaminate names no test set: give files or tasks.")

    @property
    def wanted(self) -> bool:
        return bool(self.files or self.tasks)

    def inputs(self) -> Any:
        """What would be read: names, sizes and times of files; tasks are not asked whether they have changed."""
        folder = sorted(Path(self.include).rglob("*.yaml")) if self.include else []
        return [listing(path) for path in [*local_test_files(self.files).values(), *folder]]

    def ngrams(self) -> TestNgrams:
        """Read the test sets; a line says which files of a folder are left out."""
        if unread := unread_files(self.files):
            more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
            names = ", ".join(map(str, unread[:3]))
            print(f"decontaminate.files: not read, of no kind that can be: {names}{more}")
        sets: dict[str, Iterator[str]] = {
            name: file_examples(path, self.columns) for name, path in local_test_files(self.files).items()
        }
        for name in self.tasks:
            sets |= task_examples(name, self.include)
        return TestNgrams(sets, self.n, self.least_words)


def decontaminate(folders: dict[str, Path], config: DecontaminateConfig, target: Path) -> dict[str, Any]:
    """Copy each source's documents without what they share with the test sets.

    Beside the documents stand `removed/<source>.parquet` (REMOVED) and `ignored.parquet`, the common N-grams. Of a document that
    was cut, each piece is a document: its id is the document's and the piece's characters in it, `id[start:end]`. A pair with a
    match is dropped whole. Returns counts by source and by test set.
    """
    tests = config.ngrams()
    documents = np.zeros(len(tests), np.int64)
    with TemporaryDirectory(dir=target, prefix=".hits") as hits_folder:
        for source, folder in folders.items():
            with pa.OSFile(f"{hits_folder}/{source}", "wb") as stream, pa.ipc.new_file(stream, HITS) as hits_file:
                for batch in document.read(folder, source):
                    hits = find_hits(batch, tests)
                    ngrams, counts = documents_with(hits)
                    documents[ngrams] += counts
                    hits_file.write_batch(hits)
        cutter = Cutter(
            config.margin_characters,
            config.piece_characters,
            config.most_splits,
            tests,
            documents > config.most_documents,
        )
        sources = {}
        for source, folder in folders.items():
            with pa.memory_map(f"{hits_folder}/{source}") as stream, pa.ipc.open_file(stream) as hits_file:
                sources[source] = cut_source(cutter, source, folder, hits_file, target)
    pq.write_table(cutter.ignored_table(documents), target / "ignored.parquet", compression="zstd")
    names = ("documents", "text_bytes", "contaminated", "dropped", "removed_passages", "removed_characters")
    test_sets = {}
    for name, members in tests.members.items():
        found, common = documents[members] > 0, documents[members] > config.most_documents
        test_sets[name] = {
            **tests.counts[name],
            "found_ngrams": int(found.sum()),
            "ignored_ngrams": int(common.sum()),
            "removed_passages": cutter.passages[name],
        }
    total = {name: sum(record[name] for record in sources.values()) for name in names}
    harness = {"lm_eval": harness_version()} if config.tasks else {}
    return {**total, "sources": sources, "test_sets": test_sets, **harness}


def cut_source(
    cutter: Cutter, source: str, folder: Path, hits_file: pa.RecordBatchFileReader, target: Path
) -> dict[str, Any]:
    """Write one source's documents, and what was removed from them; returns the counts."""
    counts: dict[str, int] = dict.fromkeys(("contaminated", "dropped", "removed_passages", "removed_characters"), 0)
    with ExitStack() as stack:
        writer = stack.enter_context(DocumentWriter(target, source))
        temporary = stack.enter_context(atomic_path(target / "removed" / f"{source}.parquet"))
        removed_file = stack.enter_context(pq.ParquetWriter(temporary, REMOVED, compression="zstd"))
        for number, batch in enumerate(document.read(folder, source)):
            kept, removed = cutter.cut(batch, hits_file.get_batch(number), source, counts)
            for part in kept:
                writer.add(part)
            if removed:
                removed_file.write_table(pa.Table.from_pylist(removed, REMOVED))
    return {**writer.record, **counts}


def report(record: dict[str, Any], console: Console) -> None:
    """Print what was found of each test set."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("test set", overflow="fold")
    for heading in ("examples", "too short", "N-grams", "found", "ignored", "passages removed"):
        table.add_column(heading, justify="right")
    names = ("examples", "short_examples", "ngrams", "found_ngrams", "ignored_ngrams", "removed_passages")
    for name, counts in record["test_sets"].items():
        table.add_row(name, *(f"{counts[each]:,}" for each in names))
    console.print(table)
