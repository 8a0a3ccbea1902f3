"""Deduplication: of documents with the same text, or nearly the same, the first in the order of the sources is kept.

A pair repeats another only if both sides do. Documents are numbered through all sources. Digests, band keys and pairs of
numbers go to disk divided into parts, each of which is sorted in memory by itself, so memory does not grow with the corpus;
three arrays of 10 bytes a document in all, and the N-grams of documents that are compared, are mapped from files.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import document
from data_prep.clusters import Clusters, equal_pairs
from data_prep.disk_arrays import Lists, Partitions, zeros
from data_prep.document import DocumentWriter, text_buffer, text_offsets
from data_prep.files import atomic_path
from data_prep.minhash import SIGNATURES, MinhashConfig, band_keys, similarities
from data_prep.ngrams import mixed
from data_prep.shingles import letters, shingle_sets

DIGEST_BYTES = 16
WINDOW = 16
"""A document is compared with the first of its band and with so many before it."""
PAIRS_AT_ONCE = 2**16
EXACT, NEAR = "exact", "near"
FOLDER = "dropped"


@dataclass(frozen=True)
class DedupConfig:
    """Which documents count as repeats. Of those that do, that of the earlier source is kept, inside a source the first."""

    normalize: bool = False
    """Compare texts in lower case, without punctuation and white space. Off, they have to be equal byte by byte."""
    fuzzy: bool = False
    """Also drop near-duplicates."""
    minhash: MinhashConfig = field(default_factory=MinhashConfig)
    keep_dropped: bool = False
    """Write what was dropped to the folder `unique/dropped`, with the id of the document that was kept."""

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as JSON; empty where all is at its default."""
        own = {name: True for name in ("normalize", "keep_dropped") if getattr(self, name)}
        return {**own, "minhash": asdict(self.minhash), "signatures": SIGNATURES} if self.fuzzy else own

    @property
    def columns(self) -> tuple[str, ...]:
        """Which numbers of the record the terminal shows."""
        return (
            "documents",
            "text_bytes",
            "duplicates",
            *((EXACT, NEAR, "threshold", "band_threshold") if self.fuzzy else ()),
        )


def deduplicate(folders: dict[str, Path], config: DedupConfig, target: Path) -> dict[str, Any]:
    """Copy each source's documents without repeats; returns what was kept and dropped of each source, and because of which.

    `target` is to be removed where this raises, as stages are: it holds what was sorted until then.
    """
    scratch = target / ".scratch"
    scratch.mkdir()
    run = Run(folders, config, scratch)
    run.join_equal()
    if config.fuzzy:
        print(config.minhash.describe())
        run.join_near(config.minhash)
    record = run.write(target)
    del run  # Network file systems keep the place of a mapped file that is deleted.
    shutil.rmtree(scratch)
    return record


class Run:
    """One deduplication: the numbers of all documents, and the clusters that they form. Its files are in `scratch`."""

    def __init__(self, folders: dict[str, Path], config: DedupConfig, scratch: Path):
        self.folders, self.config, self.scratch = folders, config, scratch
        self.names = list(folders)
        self.sides, counts = 1, []
        for name, folder in folders.items():
            counts.append(0)
            for parquet, _, documents in document.row_groups(folder, name):
                counts[-1] += len(documents)
                self.sides = len(set(document.SIDES) & set(parquet.schema_arrow.names))
        self.firsts = np.cumsum([0, *counts])
        self.count = int(self.firsts[-1])
        self.clusters = Clusters(scratch / "clusters", self.count)
        self.equal = zeros(scratch / "equal", self.count, bool)
        self.ids = Lists(scratch / "ids", np.uint8) if config.keep_dropped else None

    def batches(self) -> Iterator[tuple[int, np.ndarray, pa.RecordBatch]]:
        """Every row group: the source's place, the numbers of its documents, and the documents."""
        for place in range(len(self.folders)):
            for numbers, batch in self.batches_of(place):
                yield place, numbers, batch

    def batches_of(self, place: int) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        first = int(self.firsts[place])
        for batch in document.read(self.folders[self.names[place]], self.names[place]):
            yield np.arange(first, first + batch.num_rows), batch
            first += batch.num_rows

    def join_equal(self) -> None:
        """Put documents with the same digest into one cluster."""
        columns = 2 * self.sides  # Two numbers a digest.
        partitions = Partitions(self.scratch / "digests", columns + 1, self.count)
        for _, numbers, batch in self.batches():
            sides = [digests(texts, self.config.normalize) for texts in document.sides(batch).values()]
            keys = np.column_stack([np.frombuffer(b"".join(side), "<u8").reshape(-1, 2) for side in sides])
            partitions.add(np.column_stack([keys, numbers.astype(np.uint64)]))
            if self.ids is not None:
                ids = batch.column("id")
                self.ids.add(np.frombuffer(text_buffer(ids), np.uint8), document.text_lengths(ids))
        for part in range(partitions.count):
            for pairs in equal_pairs(partitions, part, keys=columns, window=0):
                self.clusters.join(*pairs.T)
                self.equal[pairs[:, 1]] = True
        shutil.rmtree(partitions.folder)

    def join_near(self, config: MinhashConfig) -> None:
        """Put near-duplicates among documents with different digests into one cluster.

        A batch gives its keys and a part of them its pairs without looking at others; only the joining has an order.
        """
        partitions = Partitions(self.scratch / "bands", 2, self.count * config.bands)
        for place, numbers, batch in self.batches():
            kept = ~self.equal[numbers]
            found = band_keys(batch.filter(pa.array(kept)), config)
            keys = found.keys if config.across else mixed(found.keys ^ np.uint64(place + 1))
            owners = np.repeat(numbers[kept][found.documents].astype(np.uint64), config.bands)
            partitions.add(np.column_stack([keys.ravel(), owners]))
        candidates = Partitions(self.scratch / "pairs", 2, self.count * config.bands // 8, bound=max(self.count, 1))
        compared = zeros(self.scratch / "compared", self.count, bool)
        for part in range(partitions.count):
            for pairs in equal_pairs(partitions, part, keys=1, window=WINDOW if config.verify else 0):
                if config.verify:
                    candidates.add(pairs.astype(np.uint64))
                    compared[pairs.ravel()] = True
                else:
                    self.clusters.join(*pairs.T)
        shutil.rmtree(partitions.folder)
        if config.verify:
            self.join_similar(candidates, self.sets_of(compared, config), config.least_similarity)

    def sets_of(self, wanted: np.ndarray, config: MinhashConfig) -> list[Lists]:
        """The N-gram sets of the wanted documents, of each side; those of others are empty."""
        sets: list[Lists] = []
        for _, numbers, batch in self.batches():
            own = np.asarray(wanted[numbers])
            if not sets:
                sets = [Lists(self.scratch / f"{side}.sets", np.uint64) for side in document.sides(batch)]
            for side, texts in zip(sets, document.sides(batch).values(), strict=True):
                values, lengths = shingle_sets(texts.filter(pa.array(own)), config.ngram, config.unit)
                every = np.zeros(len(numbers), np.int64)
                every[own] = lengths
                side.add(values, every)
        for side in sets:
            side.finish()
        return sets

    def join_similar(self, candidates: Partitions, sets: list[Lists], least: float) -> None:
        """Join the pairs that are at least so similar, of pairs of texts on both sides."""
        for part in range(candidates.count):
            for chunk in candidates.chunks(part):
                pairs = chunk[np.lexsort(chunk.T[::-1])].astype(np.int64)
                pairs = pairs[np.r_[True, (pairs[1:] != pairs[:-1]).any(axis=1)]]
                for begin in range(0, len(pairs), PAIRS_AT_ONCE):
                    some = pairs[begin : begin + PAIRS_AT_ONCE]
                    # What hangs together already need not be compared: it changes no cluster.
                    some = some[self.clusters.roots(some[:, 0]) != self.clusters.roots(some[:, 1])]
                    similarity = np.minimum.reduce([similarities(side, some) for side in sets])
                    self.clusters.join(*some[similarity >= least].T)

    def write(self, target: Path) -> dict[str, Any]:
        """Copy the first document of each cluster; count the rest, and write it aside where that is asked for."""
        if self.ids is not None:
            self.ids.finish()
        records: dict[str, Any] = {}
        for place, name in enumerate(self.names):
            counts = {EXACT: 0, NEAR: 0}
            owners = np.zeros(len(self.names), np.int64)
            with DocumentWriter(target, name) as writer, Aside(target / FOLDER, name) as aside:
                for numbers, batch in self.batches_of(place):
                    roots = self.clusters.roots(numbers)
                    repeats = roots != numbers
                    writer.add(batch.filter(pa.array(~repeats)))
                    exact, kept = self.equal[numbers[repeats]], roots[repeats]
                    sources = np.searchsorted(self.firsts, kept, side="right") - 1
                    owners += np.bincount(sources, minlength=len(owners))
                    counts[EXACT] += int(exact.sum())
                    counts[NEAR] += int((~exact).sum())
                    if self.ids is not None and len(kept):
                        reasons = np.where(exact, EXACT, NEAR)
                        ids = strings(*self.ids.take(kept))
                        kept_in = pa.array(self.names).take(pa.array(sources))
                        aside.add(batch.filter(pa.array(repeats)), pa.array(reasons), ids, kept_in)
            duplicate_of = {other: int(count) for other, count in zip(self.names, owners, strict=True) if count}
            records[name] = {**writer.record, **counts, "duplicate_of": duplicate_of}
        total: dict[str, Any] = {
            key: sum(record[key] for record in records.values()) for key in ("documents", "text_bytes", EXACT, NEAR)
        }
        total["duplicates"] = total[EXACT] + total[NEAR]
        if self.config.fuzzy:
            total["threshold"] = round(self.config.minhash.least_similarity, 4)
            total["band_threshold"] = round(self.config.minhash.band_threshold, 4)
        return {**total, "sources": records}


class Aside:
    """Writes dropped documents of one source, with the reason and what was kept instead; no file where there are none."""

    def __init__(self, folder: Path, source: str):
        self.path, self.source = folder / f"{source}-00000.parquet", source
        self._open = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Aside":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(self, batch: pa.RecordBatch, reasons: pa.Array, ids: pa.Array, sources: pa.Array) -> None:
        columns = {"reason": reasons, "duplicate_of": ids, "duplicate_of_source": sources}
        own = {"id": batch.column("id"), **document.sides(batch), "source": pa.repeat(self.source, batch.num_rows)}
        table = pa.table({**own, **columns})
        if self._writer is None:
            temporary = self._open.enter_context(atomic_path(self.path))
            self._writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
            self._open.enter_context(self._writer)
        self._writer.write_table(table)


def strings(content: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """A column of strings from its UTF-8 and the bytes of each."""
    ends = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(content)))


def digests(texts: pa.Array, normalize: bool = False) -> list[bytes]:
    """A digest of each text, taken from the column's memory without making strings of it.

    Normalised texts of which nothing stays, as of punctuation alone, are told apart byte by byte.
    """
    # One call a document: a digest that is safe against collisions costs less than a millionth of a second besides its bytes.
    raw = hashed(text_buffer(texts), text_offsets(texts))
    if not normalize:
        return raw
    codes, counts = letters(texts)
    normal = hashed(memoryview(codes.tobytes()), codes.itemsize * np.r_[0, np.cumsum(counts)], b"normalized")
    return [one if count else other for one, other, count in zip(normal, raw, counts.tolist(), strict=True)]


def hashed(content: memoryview, offsets: np.ndarray, person: bytes = b"") -> list[bytes]:
    """A digest of each piece of memory between two offsets, the first of which is where it starts."""
    bounds = (offsets - offsets[0]).tolist()
    return [
        hashlib.blake2b(content[begin:end], digest_size=DIGEST_BYTES, person=person).digest()
        for begin, end in pairwise(bounds)
    ]
