"""Collection: any source becomes Parquet documents or pairs, with what is known about where they came from."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.document import DocumentWriter, link_documents, sides, text_lengths, total_of
from data_prep.files import InputError
from data_prep.sources import Part, Source
from data_prep.stages import fill_folder
from data_prep.units import Phase, Steps, Unit
from data_prep.workers import workers as running

BATCH_CHARACTERS = 2**20


def collecting(name: str, source: Source) -> Steps:
    """The stage that reads one source, in units that are its parts."""
    parts = source.parts()
    settings = {key: value for key, value in source.settings().items() if key not in ("files", "limit")}
    given = [name, type(source).__name__, settings]
    units = [
        Unit(
            f"{name}: {part.label}", partial(collect_part, name, part), part.inputs(), part.bytes, wide=len(parts) == 1
        )
        for part in parts
    ]
    if len(parts) > 1:
        units = [replace(unit, call=partial(unit.call, workers=1)) for unit in units]
    outputs = yield Phase("documents", 1, given, units)
    if not any(output.record["documents"] for output in outputs):
        raise InputError(f"Source {name!r} has no document with text in it: check its settings and its files.")

    def fill(target: Path) -> dict[str, Any]:
        link_documents([output.folder for output in outputs], name, target)
        return total_of(output.record for output in outputs)

    return fill


def collect(name: str, source: Source, workers: int, target: Path) -> dict[str, Any]:
    """Collect a source into a folder, without a stage around it."""
    with running(workers) as pool:
        return fill_folder(collecting(name, source), target, pool)


def collect_part(name: str, source: Part, target: Path, workers: int) -> dict[str, Any]:
    """Write all documents that have text, and all pairs that have it on both sides.

    Half of a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.
    """
    origin: dict[str, Any] = {}
    empty = 0
    with DocumentWriter(target, name) as writer, ExitStack() as stack:
        batches = source.batches(workers, origin)
        stack.callback(getattr(batches, "close", lambda: None))  # Ends the processes that read, where a limit is met.

        def with_text() -> Iterator[pa.RecordBatch]:
            nonlocal empty
            left = source.source.limit
            for batch in batches:
                full = np.logical_and.reduce([has_text(texts) for texts in sides(batch).values()])
                if left is not None and full.sum() >= left:
                    stop = int(np.searchsorted(np.cumsum(full), left)) + 1 if left > 0 else 0
                    batch, full = batch.slice(0, stop), full[:stop]
                empty += int((~full).sum())
                yield batch if full.all() else batch.filter(pa.array(full))
                if left is not None:
                    left -= int(full.sum())
                    if left <= 0:
                        return

        for batch in even(with_text()):
            writer.add(batch)
    return {**writer.record, "empty": empty, **origin}


def has_text(texts: pa.Array) -> np.ndarray:
    """Whether each text is more than white space."""
    return text_lengths(pc.call_function("utf8_ltrim_whitespace", [texts])) > 0


def even(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that depend on the rows alone: each ends with the row that fills it."""
    pending: list[pa.RecordBatch] = []
    characters = 0
    for batch in batches:
        lengths = [pc.call_function("utf8_length", [texts]).to_numpy() for texts in sides(batch).values()]
        ends = np.cumsum(np.sum(lengths, axis=0, dtype=np.int64))
        start = 0
        while start < batch.num_rows:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + BATCH_CHARACTERS - characters)) + 1
            pending.append(batch.slice(start, min(stop, batch.num_rows) - start))
            characters += int(ends[min(stop, batch.num_rows) - 1]) - before
            if stop <= batch.num_rows:
                yield joined(pending)
                pending, characters = [], 0
            start = stop
    if pending:
        yield joined(pending)


def joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.record_batch(
        {name: pa.concat_arrays([batch.column(name) for batch in batches]) for name in batches[0].schema.names}
    )
