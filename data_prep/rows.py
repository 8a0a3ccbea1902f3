"""What a source gives: a row of (id, text), or (id, text, target), and many of them as columns."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.document import SIDES, text_buffer, text_offsets
from data_prep.files import InputError

BATCH_CHARACTERS = 2**20


def content_id(name: str, text: str) -> str:
    """An id for a piece of something larger, which stays when other pieces are added or removed around it."""
    return f"{name}#{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def content_ids(name: str, texts: pa.Array) -> pa.Array:
    """`content_id` of each text of a string column, hashed in the column's memory."""
    content, offsets = text_buffer(texts), text_offsets(texts)
    bounds = pairwise((offsets - offsets[0]).tolist())
    digests = pa.array([hashlib.sha256(content[begin:end]).hexdigest()[:16] for begin, end in bounds], pa.string())
    return pc.call_function("binary_join_element_wise", [pa.scalar(name), digests, pa.scalar("#")])


def pick(row: dict[str, Any], text_column: str, id_column: str | None, name: str, place: str) -> tuple[str, str]:
    """The id and text of a row. A null text counts as empty."""
    for column in (text_column, id_column):
        if column is not None and column not in row:
            raise InputError(
                f"{place} has no field {column!r}, only {', '.join(row)}: set `text_column` or `id_column`."
            )
    text = row[text_column]
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InputError(
            f"{place} holds {type(text).__name__} in {text_column!r}, not text: set `text_column` to another field."
        )
    return (content_id(name, text) if id_column is None else str(row[id_column])), text


def batch_of(rows: list[tuple[str, ...]]) -> pa.RecordBatch:
    """Rows of (id, text) or (id, text, target) as columns. Half of a surrogate pair becomes U+FFFD."""
    columns = list(zip(*rows, strict=True))
    arrays = [pa.array(map(valid, column), pa.string(), size=len(rows)) for column in columns]
    return pa.record_batch(arrays, names=["id", *SIDES][: len(columns)])


def batches_of(rows: Iterable[tuple[str, ...]]) -> Iterator[pa.RecordBatch]:
    """Rows as batches of about a megabyte."""
    some: list[tuple[str, ...]] = []
    characters = 0
    for row in rows:
        some.append(row)
        characters += sum(map(len, row))
        if characters >= BATCH_CHARACTERS:
            yield batch_of(some)
            some, characters = [], 0
    if some:
        yield batch_of(some)


def valid(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
