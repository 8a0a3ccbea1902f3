"""A prepared corpus as it lies on the disk: its manifest, its tokenizer, and the Parquet documents beside them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_prep import document
from data_prep.files import InputError
from data_prep.shards import REMAKE, Manifest
from data_prep.tokenizer import FILE, Tokenizer


def open_corpus(folder: Path) -> tuple[Manifest, Tokenizer]:
    """Manifest and tokenizer of a corpus, given as its output folder or as the folder `tokens` in it."""
    manifest = Manifest.load(folder / "tokens" if (folder / "tokens").is_dir() else folder)
    tokenizer = Tokenizer.load(manifest.folder / FILE)
    if tokenizer.fingerprint != manifest.tokenizer:
        raise InputError(
            f"{manifest.folder / FILE} has fingerprint {tokenizer.fingerprint[:16]}, the shards were made with "
            f"{manifest.tokenizer[:16]}: restore the file or {REMAKE}."
        )
    return manifest, tokenizer


def documents_by_source(manifest: Manifest, split: str) -> dict[str, int]:
    """How many documents each source has in a split, in the order in which they follow one another."""
    counts: dict[str, int] = {}
    for shard in manifest.shards(split):
        counts[shard.source] = counts.get(shard.source, 0) + shard.documents
    return counts


def parquet_batches(manifest: Manifest, split: str) -> Iterator[pa.RecordBatch]:
    """The documents of a split in the order of its shards, a row group at a time; nothing where no Parquet is there."""
    for source in documents_by_source(manifest, split):
        yield from document.read(manifest.folder.parent / "split" / split, source)
