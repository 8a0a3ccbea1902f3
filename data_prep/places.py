"""Where documents are: by number, by id, by shard and offset, by a piece of their text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import document
from data_prep.corpus import documents_by_source, parquet_batches
from data_prep.document import SIDES
from data_prep.files import InputError
from data_prep.shards import Manifest, Place, TokenReader
from data_prep.tokenizer import Tokenizer

DECODED_AT_ONCE = 1024


@dataclass(frozen=True)
class Located:
    """A document of a split."""

    split: str
    number: int
    source: str
    id: str | None
    """None where no Parquet lies beside the shards."""
    place: Place


def locate(manifest: Manifest, reader: TokenReader, split: str, k: int) -> Located:
    """Where document `k` of a split is. InputError where there is none."""
    place = reader.place(k)
    source, row = place.shard.source, k
    for name, documents in documents_by_source(manifest, split).items():
        if name == source:
            break
        row -= documents
    return Located(split, k, source, manifest.ids(split, source, [row]).get(row), place)


def numbers_of(manifest: Manifest, split: str, id: str) -> Iterator[int]:
    """The numbers of all documents of a split that have this id."""
    first = 0
    for source, documents in documents_by_source(manifest, split).items():
        groups = document.row_groups(manifest.folder.parent / "split" / split, source)
        for parquet, group, rows in groups:
            ids = parquet.read_row_group(group, columns=["id"]).column("id")
            same = pc.call_function("equal", [ids, pa.scalar(id)]).to_numpy()
            yield from (np.flatnonzero(same) + first + rows.start).tolist()
        first += documents


def at_offset(manifest: Manifest, shard: str, offset: int) -> tuple[str, int]:
    """The split and the number of the document that a token of a shard is of.

    `shard` is its name in the manifest (`train/books-00000`) or a path that ends in it, with or without suffix.
    """
    name = shard.removesuffix(".bin").removesuffix(".idx")
    for split, shards in manifest.splits.items():
        start = 0
        for own in shards:
            if own.file == name or name.endswith(f"/{own.file}"):
                if not 0 <= offset < own.tokens:
                    raise InputError(f"There is no token {offset} in {own.file}: it has tokens 0 to {own.tokens - 1}.")
                return split, manifest.open(split).documents_of(start + offset, 1)[0]
            start += own.tokens
    some = [shard.file for shards in manifest.splits.values() for shard in shards]
    have = ", ".join(some[:3]) + (" ..." if len(some) > 3 else "")
    raise InputError(f"There is no shard {shard!r} in {manifest.folder}: it has {have}.")


@dataclass(frozen=True)
class Match:
    """A piece of text in a document."""

    number: int
    side: str
    offset: int
    """Characters of the text before it."""
    text: str


@dataclass
class Found:
    """All that a search counted; `first` holds the first of the matches."""

    matches: int
    documents: int
    first: list[Match]


def find(manifest: Manifest, tokenizer: Tokenizer, split: str, text: str, ignore_case: bool, limit: int) -> Found:
    """Search the text of a split for a string; matches do not overlap.

    The text is that in Parquet or, where none lies beside the shards, what their ids spell.
    """
    found = Found(0, 0, [])
    flags = re.IGNORECASE if ignore_case else 0
    pattern = re.compile(re.escape(text), flags)
    options = pc.MatchSubstringOptions(text, ignore_case=ignore_case)
    first = 0
    for batch in text_batches(manifest, tokenizer, split):
        hit = np.zeros(batch.num_rows, bool)
        for side, texts in document.sides(batch).items():
            has = pc.call_function("match_substring", [texts], options).to_numpy(zero_copy_only=False)
            hit |= has
            for row in np.flatnonzero(has).tolist():
                whole = texts[row].as_py()
                for match in pattern.finditer(whole):
                    found.matches += 1
                    if len(found.first) < limit:
                        found.first.append(Match(first + row, side, match.start(), whole))
        found.documents += int(hit.sum())
        first += batch.num_rows
    return found


def text_batches(manifest: Manifest, tokenizer: Tokenizer, split: str) -> Iterator[pa.RecordBatch]:
    """The columns of text of a split, from Parquet or from the ids."""
    batches = parquet_batches(manifest, split)
    head = next(batches, None)
    if head is not None:
        yield head
        yield from batches
        return
    reader = manifest.open(split)
    for start in range(0, reader.documents, DECODED_AT_ONCE):
        documents = range(start, min(start + DECODED_AT_ONCE, reader.documents))
        rows = [[tokenizer.decode(ids[:-1]) for ids in reader.sequences(k)] for k in documents]
        columns = zip(*rows, strict=True)
        yield pa.record_batch(dict(zip(SIDES, (pa.array(column, pa.string()) for column in columns), strict=False)))
