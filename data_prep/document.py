"""The one record that passes between stages, (id, text, source) or a pair's (id, text, target, source), in Parquet.

Files are read and written a bounded batch at a time, so the memory in use does not depend on the size of the corpus.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.files import atomic_path, fingerprint, sha256_file
from data_prep.overlap import ahead
from data_prep.units import link, total

SIDES = ("text", "target")
ROW_GROUP_BYTES = 8 * 2**20
ROW_GROUP_DOCUMENTS = 2**14
FILE_BYTES = 64 * 2**20
SPREAD = 8
"""A sample is taken from so many times as many row groups as would hold it, so that neighbours are not all of it."""


class DocumentWriter:
    """Writes the documents of one source to `<source>-00000.parquet` and its successors, a row group at a time.

    Use as a context manager; `record` has the counts and the fingerprint of the content when the block has ended.
    """

    def __init__(self, folder: Path, source: str):
        self.folder, self.source = folder, source
        self.documents = self.text_bytes = 0
        self._files = self._file_bytes = 0
        self._open = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_documents = self._pending_bytes = 0
        # Hashed apart and as streams, so that the fingerprint does not depend on how documents were batched.
        self._hashes: defaultdict[str, Any] = defaultdict(hashlib.sha256)

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self._flush()
            self._open.close()
        else:
            self._open.__exit__(kind, error, trace)

    def add(self, batch: pa.RecordBatch) -> None:
        """Append documents given as columns `id`, `text` and, of pairs, `target`; other columns are not looked at."""
        if batch.num_rows == 0:
            return
        ids, columns = batch.column("id"), sides(batch)
        self._hashes["id"].update(("\n".join(ids.to_pylist()) + "\n").encode())
        size = 0
        for name, texts in columns.items():
            lengths = text_lengths(texts)
            size += int(lengths.sum())
            self._hashes[name].update(text_buffer(texts))
            self._hashes[f"{name} lengths"].update(lengths.astype("<i8").tobytes())
        self._pending.append(pa.record_batch({"id": ids, **columns, "source": pa.repeat(self.source, batch.num_rows)}))
        self._pending_documents += batch.num_rows
        self._pending_bytes += size
        self.documents += batch.num_rows
        self.text_bytes += size
        if self._pending_bytes >= ROW_GROUP_BYTES or self._pending_documents >= ROW_GROUP_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            path = self.folder / path_name(self.source, self._files)
            temporary = self._open.enter_context(atomic_path(path))
            schema = self._pending[0].schema
            # Texts and ids are all different: a dictionary of them would be made for nothing.
            options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["source"]}
            self._writer = self._open.enter_context(pq.ParquetWriter(temporary, schema, **options))
        self._writer.write_table(pa.Table.from_batches(self._pending), row_group_size=self._pending_documents)
        self._file_bytes += self._pending_bytes
        self._pending, self._pending_documents, self._pending_bytes = [], 0, 0
        if self._file_bytes >= FILE_BYTES:
            self._open.close()
            self._writer, self._file_bytes, self._files = None, 0, self._files + 1

    @property
    def record(self) -> dict[str, Any]:
        digest = hashlib.sha256("".join(part.hexdigest() for part in self._hashes.values()).encode())
        return {"documents": self.documents, "text_bytes": self.text_bytes, "fingerprint": digest.hexdigest()}


def link_documents(folders: Iterable[Path], source: str, target: Path) -> None:
    """Put the documents that were written into several folders, in turn, into one."""
    paths = [path for folder in folders for path in files(folder, source)]
    for number, path in enumerate(paths):
        link(path, target / path_name(source, number))


def total_of(records: Iterable[dict[str, Any]], *counts: str) -> dict[str, Any]:
    """The record of documents that were written in several goes, from the records of each; `counts` are more that it has."""
    records = list(records)
    fingerprints = [record["fingerprint"] for record in records]
    sums = total({name: value for name, value in record.items() if name != "fingerprint"} for record in records)
    zeros = dict.fromkeys(("documents", "text_bytes", *counts), 0)
    return {**zeros, **sums, "fingerprint": fingerprints[0] if len(fingerprints) == 1 else fingerprint(fingerprints)}


def path_name(source: str, number: int) -> str:
    return f"{source}-{number:05d}.parquet"


def sides(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """The columns of text: `text` alone, or `text` and `target` of pairs."""
    return {name: batch.column(name) for name in SIDES if name in batch.schema.names}


def texts_in_turn(batch: pa.RecordBatch) -> pa.Array:
    """All texts of a batch, document by document; of a pair the text first and then the target."""
    columns = list(sides(batch).values())
    if len(columns) == 1:
        return columns[0]
    order = np.arange(len(columns) * batch.num_rows).reshape(len(columns), -1).T.ravel()
    return pa.concat_arrays(columns).take(pa.array(order))


def text_offsets(texts: pa.Array) -> np.ndarray:
    """Where each text starts in the memory of a string column, and where the last one ends."""
    return np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, 4 * texts.offset)


def text_lengths(texts: pa.Array) -> np.ndarray:
    """UTF-8 bytes of each text of a string column, as int64."""
    return np.diff(text_offsets(texts)).astype(np.int64)


def text_buffer(texts: pa.Array) -> memoryview:
    """The UTF-8 of a string column as one piece of memory, without a copy."""
    offsets = text_offsets(texts)
    return memoryview(texts.buffers()[2] or b"")[offsets[0] : offsets[-1]]


def files(folder: Path, source: str) -> list[Path]:
    """The Parquet files of one source, in the order in which they were written."""
    return sorted(folder.glob(f"{source}-[0-9][0-9][0-9][0-9][0-9]*.parquet"))


def row_groups(folder: Path, source: str) -> Iterator[tuple[pq.ParquetFile, int, range]]:
    """The row groups of one source: the open file, the group's number in it, and which of the source's documents it holds."""
    first = 0
    for path in files(folder, source):
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                documents = range(first, first + parquet.metadata.row_group(group).num_rows)
                yield parquet, group, documents
                first = documents.stop


@dataclass(frozen=True)
class DocumentFile:
    """A file of documents, as the work of a unit."""

    path: Path
    digest: str
    """SHA-256 of it."""

    @property
    def name(self) -> str:
        """What it is called for people."""
        return str(self.path)

    @property
    def bytes(self) -> int:
        return text_size(self.path)


def hashed_files(folder: Path, source: str) -> list[DocumentFile]:
    """The files of one source, read for their digests."""
    return [DocumentFile(path, sha256_file(path)) for path in files(folder, source)]


class Reading:
    """Which documents this process has read last, for those who are told that something went wrong with them."""

    def __init__(self) -> None:
        self.place = ""

    def clear(self) -> None:
        self.place = ""

    def __str__(self) -> str:
        return self.place


READING = Reading()


def read(folder: Path, source: str) -> Iterator[pa.RecordBatch]:
    """The documents of one source, a row group at a time."""
    return read_files(files(folder, source))


def read_file(path: Path) -> Iterator[pa.RecordBatch]:
    """The documents of one file, a row group at a time."""
    return read_files([path])


def read_files(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The documents of some files, a row group at a time; the next one is read meanwhile."""
    with closing(ahead(tables_of(paths))) as tables:
        for path, first, table in tables:
            for batch in table.combine_chunks().to_batches():
                READING.place = f"{path}, documents {first} to {first + batch.num_rows - 1}"
                yield batch
                first += batch.num_rows


def read_texts(paths: Sequence[Path], size: int) -> Iterator[pa.Array]:
    """The texts of some files, as `texts_in_turn`, about so many bytes at once; what comes next is read meanwhile."""

    def joined() -> Iterator[tuple[str, pa.Array]]:
        held: list[pa.Array] = []
        bytes_held, place = 0, ""
        for path, first, table in tables_of(paths, columns=SIDES):
            # A large row group by itself: an array holds at most 2 GB.
            if held and bytes_held + table.nbytes > size:
                yield place, pa.concat_arrays(held)
                held, bytes_held, place = [], 0, ""
            place = place or f"{path}, from document {first} on"
            held += [texts_in_turn(batch) for batch in table.combine_chunks().to_batches()]
            bytes_held += table.nbytes
        if held:
            yield place, pa.concat_arrays(held)

    with closing(ahead(joined())) as parts:
        for READING.place, texts in parts:
            yield texts


def tables_of(paths: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[tuple[Path, int, pa.Table]]:
    """Row groups of files, with the file and the number in it of their first document; of `columns` those that there are."""
    for path in paths:
        first = 0
        with pq.ParquetFile(path) as parquet:
            wanted = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=wanted)
                yield path, first, table
                first += table.num_rows


def some(folder: Path, source: str, share: float, seed: str) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Row groups of one source of which to take documents, and the share to take of each, for a sample of about this share of all.

    For a small share most row groups are not read, and which ones is decided by a hash of `seed` and their number.
    """
    part = min(1.0, SPREAD * share)
    for number, (parquet, group, _) in enumerate(row_groups(folder, source)):
        place = int.from_bytes(hashlib.sha256(f"{seed}\0{source}\0{number}".encode()).digest()[:8], "big") / 2**64
        if place < part:
            for batch in parquet.read_row_group(group).combine_chunks().to_batches():
                yield batch, share / part


def text_size(path: Path) -> int:
    """About how many bytes of text a file of documents has, without reading it."""
    with pq.ParquetFile(path) as parquet:
        groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
        columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema in SIDES)


def read_one(folder: Path, source: str, k: int) -> dict[str, str] | None:
    """Document `k` of one source, None where there are fewer. Reads no more than its row group."""
    for parquet, group, documents in row_groups(folder, source):
        if k in documents:
            return parquet.read_row_group(group).slice(k - documents.start, 1).to_pylist()[0]
    return None


def read_ids(folder: Path, source: str, wanted: Collection[int]) -> dict[int, str]:
    """The ids of these documents of one source, of those that there are. Reads no more than the ids of their row groups."""
    found = {}
    for parquet, group, documents in row_groups(folder, source):
        if here := [k for k in wanted if k in documents]:
            ids = parquet.read_row_group(group, columns=["id"]).column("id")
            found |= {k: ids[k - documents.start].as_py() for k in here}
    return found


def find_id(folder: Path, source: str, id: str) -> int | None:
    """The first document of one source that has this id, None where there is none. Reads ids alone."""
    for parquet, group, documents in row_groups(folder, source):
        place = pc.index(parquet.read_row_group(group, columns=["id"]).column("id"), id).as_py()
        if place >= 0:
            return documents.start + place
    return None
