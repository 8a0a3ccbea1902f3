"""Decontamination: passages that training documents share with test sets are cut out (Brown et al. 2020, appendix C).

A first pass finds every N-gram of the tests in the corpus and counts the documents that have it; a second cuts the documents.
Between them stand, in memory, the tests' N-grams with their counts, and on disk a record of 29 bytes for each hit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep import document
from data_prep.collisions import ARRAYS, HITS, TestNgrams, documents_with, find_hits
from data_prep.cutting import REMOVED, Cutter, ignored_table
from data_prep.document import (
    DocumentFile,
    DocumentWriter,
    hashed_files,
    link_documents,
    path_name,
    total_of,
)
from data_prep.files import InputError
from data_prep.sources import listing
from data_prep.stages import fill_folder
from data_prep.test_sets import file_examples, harness_version, local_test_files, task_examples, unread_files
from data_prep.units import Phase, Steps, Unit, link, total
from data_prep.workers import workers as running

READ_BY = ("files", "columns", "tasks", "include", "n", "least_words")
"""Settings that say what the test sets are; the others say what is done with what they share with documents."""
HITS_FILE, FOUND, DOCUMENTS, COMMON, REMOVED_FILE = (
    "hits.arrow", "found.npy", "documents.npy", "common.npy", "removed.parquet",
)  # fmt: skip
KEPT = (
    "documents", "text_bytes", "contaminated", "dropped", "removed_passages", "removed_characters", "fingerprint",
)  # fmt: skip


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


def decontaminating(files: Mapping[str, Sequence[DocumentFile]], config: DecontaminateConfig) -> Steps:
    """The stage that copies each source's documents without what they share with the test sets.

    Beside the documents stand `removed/<source>-00000.parquet` and so on (REMOVED), of files from which something was, and
    `ignored.parquet`, the common N-grams. Of a document that was cut, each piece is a document: its id is the document's and the
    piece's characters in it, `id[start:end]`. A pair with a match is dropped whole. The record has counts by source and by test set.
    """
    every = [(source, file) for source, own in files.items() for file in own]
    settings = {name: value for name, value in asdict(config).items() if name in READ_BY}
    [tests] = yield Phase(
        "tests", 1, settings, [Unit("the test sets", partial(read_tests, config), config.inputs())], alone=True
    )
    found = yield Phase(
        "hits",
        1,
        tests.digest(ARRAYS),
        [Unit(file.name, partial(find_file, file.path, tests.folder), file.digest, file.bytes) for _, file in every],
    )
    [common] = yield Phase(
        "common",
        1,
        config.most_documents,
        [
            Unit(
                "all counts",
                partial(add_counts, [output.folder for output in found], tests.folder, config.most_documents),
                [tests.digest(ARRAYS), [output.digest(FOUND) for output in found]],
            )
        ],
        alone=True,
    )
    cut = yield Phase(
        "cut",
        1,
        {name: value for name, value in asdict(config).items() if name not in READ_BY},
        [
            Unit(
                file.name,
                partial(cut_file, file.path, source, config, tests.folder, hits.folder, common.folder),
                [source, file.digest, hits.digest(HITS_FILE), tests.digest(ARRAYS), common.digest(COMMON)],
                file.bytes,
            )
            for (source, file), hits in zip(every, found, strict=True)
        ],
    )

    def fill(target: Path) -> dict[str, Any]:
        sources = {}
        ignored: dict[int, str] = {}
        for source in files:
            own = [output for (of, _), output in zip(every, cut, strict=True) if of == source]
            link_documents([output.folder for output in own], source, target)
            removed = [output.folder / REMOVED_FILE for output in own if output.record["removed_rows"]]
            for number, path in enumerate(removed):
                link(path, target / "removed" / path_name(source, number))
            sources[source] = total_of(({name: output.record[name] for name in KEPT} for output in own), *KEPT[:-1])
            for output in own:
                ignored |= {int(k): words for k, words in output.record["ignored"].items() if int(k) not in ignored}
        documents = np.load(common.folder / DOCUMENTS)
        pq.write_table(ignored_table(ignored, documents), target / "ignored.parquet", compression="zstd")
        passages = total(output.record["passages"] for output in cut)
        return contamination(TestNgrams.load(tests.folder), documents, config, sources, passages)

    return fill


def contamination(
    tests: TestNgrams,
    documents: np.ndarray,
    config: DecontaminateConfig,
    sources: dict[str, Any],
    passages: Mapping[str, int],
) -> dict[str, Any]:
    """The record of the stage: totals, and what was found of each test set."""
    test_sets = {}
    for name, members in tests.members.items():
        found, common = documents[members] > 0, documents[members] > config.most_documents
        test_sets[name] = {
            **tests.counts[name],
            "found_ngrams": int(found.sum()),
            "ignored_ngrams": int(common.sum()),
            "removed_passages": passages.get(name, 0),
        }
    names = [name for name in KEPT if name != "fingerprint"]
    totals = {name: sum(record[name] for record in sources.values()) for name in names}
    harness = {"lm_eval": harness_version()} if config.tasks else {}
    return {**totals, "sources": sources, "test_sets": test_sets, **harness}


def decontaminate(folders: dict[str, Path], config: DecontaminateConfig, target: Path) -> dict[str, Any]:
    """Decontaminate the documents of folders into another, without a stage around it."""
    with running(1) as pool:
        files = {source: hashed_files(folder, source) for source, folder in folders.items()}
        return fill_folder(decontaminating(files, config), target, pool)


def read_tests(config: DecontaminateConfig, target: Path) -> dict[str, Any]:
    """Read the test sets into N-grams."""
    config.ngrams().save(target)
    return {}


@lru_cache(1)
def prepared(tests_folder: Path) -> TestNgrams:
    return TestNgrams.load(tests_folder)


def find_file(path: Path, tests_folder: Path, target: Path) -> dict[str, Any]:
    """Write where the N-grams of the tests stand in a file's documents, and in how many of them each does."""
    tests = prepared(tests_folder)
    documents = np.zeros(len(tests), np.int64)
    with pa.OSFile(str(target / HITS_FILE), "wb") as stream, pa.ipc.new_file(stream, HITS) as hits_file:
        for batch in document.read_file(path):
            hits = find_hits(batch, tests)
            ngrams, counts = documents_with(hits)
            documents[ngrams] += counts
            hits_file.write_batch(hits)
    found = np.flatnonzero(documents)
    np.save(target / FOUND, np.stack([found, documents[found]]))
    return {}


def add_counts(folders: Sequence[Path], tests_folder: Path, most: int, target: Path) -> dict[str, Any]:
    """Add up in how many documents of the corpus each N-gram stands, and say which are common."""
    documents = np.zeros(len(prepared(tests_folder)), np.int64)
    for folder in folders:
        ngrams, counts = np.load(folder / FOUND)
        documents[ngrams] += counts
    np.save(target / DOCUMENTS, documents)
    np.save(target / COMMON, documents > most)
    return {}


def cut_file(
    path: Path,
    source: str,
    config: DecontaminateConfig,
    tests_folder: Path,
    hits_folder: Path,
    common_folder: Path,
    target: Path,
) -> dict[str, Any]:
    """Write what stays of a file's documents, and what was removed from them; returns the counts."""
    tests = prepared(tests_folder)
    common = np.load(common_folder / COMMON)
    cutter = Cutter(config.margin_characters, config.piece_characters, config.most_splits, tests, common)
    counts: dict[str, int] = dict.fromkeys(("contaminated", "dropped", "removed_passages", "removed_characters"), 0)
    rows = 0
    with ExitStack() as stack:
        hits_file = stack.enter_context(
            pa.ipc.open_file(stack.enter_context(pa.memory_map(str(hits_folder / HITS_FILE))))
        )
        writer = stack.enter_context(DocumentWriter(target, source))
        removed_file = stack.enter_context(pq.ParquetWriter(target / REMOVED_FILE, REMOVED, compression="zstd"))
        for number, batch in enumerate(document.read_file(path)):
            kept, removed = cutter.cut(batch, hits_file.get_batch(number), source, counts)
            for part in kept:
                writer.add(part)
            if removed:
                removed_file.write_table(pa.Table.from_pylist(removed, REMOVED))
                rows += len(removed)
    more = {"removed_rows": rows, "passages": cutter.passages, "ignored": cutter.ignored}
    return {**writer.record, **counts, **more}


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
