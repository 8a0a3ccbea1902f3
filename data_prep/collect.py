"""Collection: any source becomes Parquet documents, with what is known about where they came from."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.document import DocumentWriter
from data_prep.files import InputError
from data_prep.sources import Source

BATCH_CHARACTERS = 2**20


def collect(name: str, source: Source, workers: int, target: Path) -> dict[str, Any]:
    """Write all documents that have text; half of a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD."""
    origin: dict[str, Any] = {}
    ids: list[str] = []
    texts: list[str] = []
    pending = empty = 0
    with DocumentWriter(target, name) as writer:
        for id, text in source.documents(workers, origin):
            if source.limit is not None and writer.documents + len(ids) >= source.limit:
                break
            if not text.strip():
                empty += 1
                continue
            ids.append(valid(id))
            texts.append(valid(text))
            pending += len(text)
            if pending >= BATCH_CHARACTERS:
                writer.add(pa.record_batch({"id": ids, "text": texts}))
                ids, texts, pending = [], [], 0
        if ids:
            writer.add(pa.record_batch({"id": ids, "text": texts}))
    if writer.documents == 0:
        raise InputError(f"Source {name!r} has no document with text in it: check its settings and its files.")
    return {**writer.record, "empty": empty, **origin}


def valid(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
