"""Collection: any source becomes Parquet documents or pairs, with what is known about where they came from."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.document import SIDES, DocumentWriter
from data_prep.files import InputError
from data_prep.sources import Source

BATCH_CHARACTERS = 2**20


def collect(name: str, source: Source, workers: int, target: Path) -> dict[str, Any]:
    """Write all documents that have text, and all pairs that have it on both sides.

    Half of a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.
    """
    origin: dict[str, Any] = {}
    rows: list[list[str]] = []
    pending = empty = 0
    with DocumentWriter(target, name) as writer:
        for id, *texts in source.documents(workers, origin):
            if source.limit is not None and writer.documents + len(rows) >= source.limit:
                break
            if not all(text.strip() for text in texts):
                empty += 1
                continue
            rows.append([valid(id), *map(valid, texts)])
            pending += sum(map(len, texts))
            if pending >= BATCH_CHARACTERS:
                writer.add(batch_of(rows))
                rows, pending = [], 0
        if rows:
            writer.add(batch_of(rows))
    if writer.documents == 0:
        raise InputError(f"Source {name!r} has no document with text in it: check its settings and its files.")
    return {**writer.record, "empty": empty, **origin}


def batch_of(rows: list[list[str]]) -> pa.RecordBatch:
    """Rows of (id, text) or (id, text, target) as columns."""
    columns = list(zip(*rows, strict=True))
    return pa.record_batch([pa.array(column) for column in columns], names=["id", *SIDES][: len(columns)])


def valid(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
