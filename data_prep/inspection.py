"""Look at a prepared corpus and check it: a table of counts, one document, and that shards hold what was put in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep import document
from data_prep.document import SIDES
from data_prep.files import InputError
from data_prep.shards import REMAKE, Manifest
from data_prep.tokenizer import FILE, Tokenizer

CHUNK_TOKENS = 2**22
COMPARED_DOCUMENTS = 200


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


def table(folder: Path, console: Console) -> None:
    """Print documents, bytes and tokens of every split and source."""
    manifest, _ = open_corpus(folder)
    counts = Table("split", "source", box=box.SIMPLE_HEAD)
    for heading in ("documents", "MB", "tokens", "bytes/token"):
        counts.add_column(heading, justify="right")
    for split, shards in manifest.splits.items():
        for source in dict.fromkeys(shard.source for shard in shards):
            own = [shard for shard in shards if shard.source == source]
            documents, size, tokens = (
                sum(getattr(shard, name) for shard in own) for name in ("documents", "text_bytes", "tokens")
            )
            ratio = f"{size / max(tokens - documents * manifest.sequences_per_document, 1):.2f}"
            counts.add_row(split, source, f"{documents:,}", f"{size / 1e6:.2f}", f"{tokens:,}", ratio)
    console.print(counts)
    console.print(
        f"{manifest.folder}: {manifest.vocab_size:,} ids as {manifest.dtype}, fingerprint {manifest.fingerprint[:16]}",
        highlight=False,
    )


def show(folder: Path, split: str, k: int, console: Console) -> None:
    """Print document `k` of a split: where it is from, and its text, of a pair both sides, as the tokens spell it."""
    manifest, tokenizer = open_corpus(folder)
    sequences = manifest.open(split).sequences(k)
    tokens = sum(map(len, sequences))
    row = k
    for source, documents in documents_by_source(manifest, split).items():
        if row < documents:
            original = document.read_one(manifest.folder.parent / "split" / split, source, row)
            name = f", id {original['id']!r}" if original else ""
            console.print(
                f"document {k} of {split}: source {source}{name}, {tokens:,} tokens\n", markup=False, highlight=False
            )
            break
        row -= documents
    for side, ids in zip(SIDES, sequences, strict=False):
        if manifest.pairs:
            console.print(f"{side}, {len(ids):,} tokens:", highlight=False)
        console.print(tokenizer.decode(ids[:-1]), markup=False, highlight=False, soft_wrap=True)


def verify(folder: Path, console: Console) -> None:
    """Check a corpus from its checksums to its text. InputError names the first thing that does not hold."""
    manifest, tokenizer = open_corpus(folder)
    manifest.verify()
    for split in [name for name, shards in manifest.splits.items() if shards]:
        check_tokens(manifest, split)
        compared = compare_text(manifest, tokenizer, split)
        text = f"{compared} {'pairs' if manifest.pairs else 'documents'} equal their text"
        if not tokenizer.lossless:
            text += " as far as this tokenizer keeps it (encoded and decoded)"
        if not compared:
            text = "no Parquet beside it to compare text with"
        console.print(
            f"{split:<12} {manifest.tokens(split):>14,} tokens  checksums, ids and ends of texts hold; {text}",
            highlight=False,
            soft_wrap=True,
        )


def check_tokens(manifest: Manifest, split: str) -> None:
    """Every id is in the vocabulary, and end-of-text stands at the end of each text and nowhere else."""
    reader = manifest.open(split)
    last = np.cumsum(reader.sequence_lengths(), dtype=np.int64) - 1
    highest = ends = closed = 0
    for start in range(0, len(reader), CHUNK_TOKENS):
        tokens = reader.read(start, min(CHUNK_TOKENS, len(reader) - start))
        highest = max(highest, int(tokens.max()))
        ended = tokens == manifest.end_of_text
        ends += int(ended.sum())
        begin, end = np.searchsorted(last, (start, start + len(tokens)))
        closed += int(ended[last[begin:end] - start].sum())
    if highest >= manifest.vocab_size:
        raise InputError(f"Split {split} holds id {highest}, the vocabulary has {manifest.vocab_size}: {REMAKE}.")
    if not ends == closed == len(last):
        kind = "texts, two a pair," if manifest.pairs else "documents,"
        raise InputError(
            f"Split {split} has {len(last)} {kind} {closed} of which end in end-of-text, "
            f"and {ends} such tokens; these have to be equal: {REMAKE}."
        )


def compare_text(manifest: Manifest, tokenizer: Tokenizer, split: str) -> int:
    """Compare decoded documents, spread over a split, with their text in Parquet; returns how many, 0 without any.

    A tokenizer that does not keep all of a text is held to what it makes of it.
    """
    reader = manifest.open(split)
    stride = max(1, reader.documents // COMPARED_DOCUMENTS)
    compared = 0
    for k, (id, *scalars) in enumerate(source_rows(manifest, split)):
        if k % stride == 0:
            compared += 1
            texts = [scalar.as_py() for scalar in scalars]
            if not tokenizer.lossless:
                texts = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
            if k >= reader.documents or [tokenizer.decode(ids[:-1]) for ids in reader.sequences(k)] != texts:
                raise InputError(
                    f"Document {k} of split {split} ({id}) does not decode to its text in Parquet: {REMAKE}."
                )
    return compared


def source_rows(manifest: Manifest, split: str) -> Iterator[tuple[Any, ...]]:
    """Id and text, of pairs the target, too, of each document of a split, in their order, as Arrow scalars."""
    for source in documents_by_source(manifest, split):
        for batch in document.read(manifest.folder.parent / "split" / split, source):
            yield from zip(batch.column("id"), *document.sides(batch).values(), strict=True)
