"""Exact deduplication: of documents with the same text, the first in the order of the sources is kept.

A pair repeats another only if both sides do.
"""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep import document
from data_prep.document import DocumentWriter, text_buffer, text_offsets

DIGEST_BYTES = 16  # About a hundred bytes of memory a document, as a Python set holds them.


def deduplicate(folders: dict[str, Path], target: Path) -> dict[str, Any]:
    """Copy each source's documents without repeats; returns what was kept of each source and what was dropped."""
    seen: set[bytes] = set()
    kept: dict[str, Any] = {}
    dropped = 0
    for source, folder in folders.items():
        with DocumentWriter(target, source) as writer:
            for batch in document.read(folder, source):
                first = []
                for sides in zip(*map(digests, document.sides(batch).values()), strict=True):
                    digest = b"".join(sides)
                    first.append(digest not in seen)
                    seen.add(digest)
                writer.add(batch.filter(pa.array(first)))
                dropped += first.count(False)
        kept[source] = writer.record
    total = {name: sum(record[name] for record in kept.values()) for name in ("documents", "text_bytes")}
    return {**total, "duplicates": dropped, "sources": kept}


def digests(texts: pa.Array) -> list[bytes]:
    """A digest of each text, taken from the column's memory without making strings of it."""
    content = text_buffer(texts)
    offsets = text_offsets(texts)
    bounds = (offsets - offsets[0]).tolist()
    return [hashlib.blake2b(content[begin:end], digest_size=DIGEST_BYTES).digest() for begin, end in pairwise(bounds)]
