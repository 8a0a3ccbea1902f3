"""Deduplication, one file of documents at a time: what it gives to be compared, and what stays of it."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import document
from data_prep.disk_arrays import Lists, ListWriter, RowWriter
from data_prep.document import DocumentWriter, text_buffer, text_lengths, text_offsets
from data_prep.files import atomic_path
from data_prep.minhash import MinhashConfig, band_keys
from data_prep.ngrams import mixed
from data_prep.shingles import Unit, letters, shingle_sets

DIGEST_BYTES = 16
DIGESTS, BANDS = "digests", "bands"
"""What files of rows are called."""
EXACT, NEAR = "exact", "near"
DROPPED = "dropped.parquet"
REPEAT = np.dtype([("row", "<u4"), ("exact", "?"), ("kept_file", "<u4"), ("kept_row", "<u4")])
"""A document that is dropped, by its place in its file; whether it is equal to what is kept, and where that is."""


@dataclass(frozen=True)
class Slice:
    """What one file of documents has of an array on disk."""

    path: Path
    begin: int
    count: int

    def read(self, dtype: Any) -> np.ndarray:
        if self.count == 0:
            return np.empty(0, dtype)
        return np.fromfile(self.path, dtype, self.count, offset=self.begin * np.dtype(dtype).itemsize)


def digest_file(path: Path, normalize: bool, keep_ids: bool, target: Path) -> dict[str, Any]:
    """Write the digests of documents, as rows of two numbers a side and the document's; and their ids, if wanted."""
    count, sides = 0, 1
    with ExitStack() as stack:
        writer: RowWriter | None = None
        ids_of = stack.enter_context(ListWriter(target / "ids", np.uint8)) if keep_ids else None
        for batch in document.read_file(path):
            columns = [digests(texts, normalize) for texts in document.sides(batch).values()]
            keys = np.column_stack([np.frombuffer(b"".join(side), "<u8").reshape(-1, 2) for side in columns])
            if writer is None:
                sides = len(columns)
                writer = stack.enter_context(RowWriter(target, DIGESTS, 2 * sides + 1))
            writer.add(np.column_stack([keys, np.arange(count, count + batch.num_rows, dtype=np.uint64)]))
            if ids_of is not None:
                ids = batch.column("id")
                ids_of.add(np.frombuffer(text_buffer(ids), np.uint8), text_lengths(ids))
            count += batch.num_rows
    return {"documents": count, "sides": sides}


def band_file(path: Path, apart: str, repeats: Slice, config: MinhashConfig, target: Path) -> dict[str, Any]:
    """Write the band keys of documents that repeat no other, as rows of the key and the document's number.

    Args:
        apart: Keys are equal only if this is, too.
        repeats: bool for each document.
    """
    of_source = np.frombuffer(hashlib.blake2b(apart.encode(), digest_size=8).digest(), "<u8") if apart else None
    distinct = ~repeats.read(bool)
    first = 0
    with RowWriter(target, BANDS, 2) as writer:
        for batch in document.read_file(path) if distinct.any() else ():
            own = distinct[first : first + batch.num_rows]
            found = band_keys(batch.filter(pa.array(own)), config)
            keys = found.keys if of_source is None else mixed(found.keys ^ of_source)
            numbers = first + np.flatnonzero(own)[found.documents].astype(np.uint64)
            writer.add(np.column_stack([keys.ravel(), np.repeat(numbers, config.bands)]))
            first += batch.num_rows
    return {}


def set_file(path: Path, wanted: Slice, sides: int, ngram: int, unit: Unit, target: Path) -> dict[str, Any]:
    """Write the sets of N-grams of the wanted documents, a file a side; those of others are empty."""
    chosen = wanted.read(bool)
    first = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(ListWriter(target / sets_name(side), np.uint64)) for side in range(sides)]
        if not chosen.any():
            for writer in writers:
                writer.add(np.empty(0, np.uint64), np.zeros(len(chosen), np.int64))
            return {}
        for batch in document.read_file(path):
            own = chosen[first : first + batch.num_rows]
            for writer, texts in zip(writers, document.sides(batch).values(), strict=True):
                values, lengths = shingle_sets(texts.filter(pa.array(own)), ngram, unit)
                every = np.zeros(batch.num_rows, np.int64)
                every[own] = lengths
                writer.add(values, every)
            first += batch.num_rows
    return {}


def sets_name(side: int) -> str:
    return f"sets-{side}"


def write_file(
    path: Path, source: str, repeats: Slice, owners: tuple[str, ...], ids: tuple[Path, ...], target: Path
) -> dict[str, Any]:
    """Copy what is kept of a file; returns counts of it and of what is dropped, by reason and by the source that keeps it.

    Args:
        repeats: REPEAT for each document that is dropped.
        owners: the source of each file of the corpus.
        ids: where the ids of each file are; empty where dropped documents are not written.
    """
    dropped = repeats.read(REPEAT)
    names, of_file = np.unique(np.array(owners, object), return_inverse=True)
    counts = np.bincount(of_file[dropped["kept_file"]], minlength=len(names))
    first = 0
    with DocumentWriter(target, source) as writer, Aside(target / DROPPED, source) as aside:
        for batch in document.read_file(path):
            begin, end = np.searchsorted(dropped["row"], [first, first + batch.num_rows])
            here = dropped[begin:end]
            repeated = np.zeros(batch.num_rows, bool)
            repeated[here["row"].astype(np.int64) - first] = True
            writer.add(batch.filter(pa.array(~repeated)))
            if ids and len(here):
                reasons = pa.array(np.where(here["exact"], EXACT, NEAR))
                sources = pa.array([owners[file] for file in here["kept_file"].tolist()])
                aside.add(batch.filter(pa.array(repeated)), reasons, ids_of(here, ids), sources)
            first += batch.num_rows
    exact = int(dropped["exact"].sum())
    of_sources = {name: int(count) for name, count in zip(names.tolist(), counts, strict=True) if count}
    return {**writer.record, EXACT: exact, NEAR: len(dropped) - exact, "duplicate_of": of_sources}


def ids_of(repeats: np.ndarray, ids: tuple[Path, ...]) -> pa.Array:
    """The ids of what is kept instead of each."""
    order = np.argsort(repeats["kept_file"], kind="stable")
    files = repeats["kept_file"][order]
    bounds = np.flatnonzero(np.r_[True, files[1:] != files[:-1], True])
    found = []
    for begin, end in pairwise(bounds.tolist()):
        lists = Lists.mapped(ids[int(files[begin])], np.uint8)
        found.append(strings(*lists.take(repeats["kept_row"][order[begin:end]].astype(np.int64))))
    return pa.concat_arrays(found).take(pa.array(np.argsort(order)))


class Aside:
    """Writes dropped documents of one source, with the reason and what was kept instead; no file where there are none."""

    def __init__(self, path: Path, source: str):
        self.path, self.source = path, source
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
