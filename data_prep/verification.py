"""Check a prepared corpus: that its shards are as they were written, and hold what was put in."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_prep import document
from data_prep.corpus import open_corpus, parquet_batches
from data_prep.files import InputError
from data_prep.shards import REMAKE, Manifest
from data_prep.tokenizer import Tokenizer

CHUNK_TOKENS = 2**22
COMPARED_DOCUMENTS = 200
LISTED = 10


def verify(folder: Path, console: Console) -> None:
    """Check a corpus from its checksums to its text and print what does not hold, of each check the first few.

    InputError at the end, with the first problem and how many there are.
    """
    manifest, tokenizer = open_corpus(folder)
    problems: list[str] = []

    def without(found: Iterable[str]) -> bool:
        """Print and keep some problems; whether there are none."""
        before = len(problems)
        found = iter(found)
        for problem in islice(found, LISTED):
            problems.append(problem)
            console.print(f"problem: {problem}", markup=False, highlight=False, soft_wrap=True)
        if more := sum(1 for _ in found):
            problems.extend([""] * more)
            console.print(f"problem: ... and {more:,} more like these", highlight=False)
        return len(problems) == before

    for split in [name for name, shards in manifest.splits.items() if shards]:
        started = time.perf_counter()
        with console.status(f"{split}: checksums"):
            whole = without(manifest.problems(split))
        try:
            manifest.open(split)
        except InputError:
            console.print(f"{split:<12} its tokens cannot be read, so they are not checked", highlight=False)
            continue
        with console.status(f"{split}: ids and ends of texts"):
            whole &= without(token_problems(manifest, split))
        compared = Compared(manifest, tokenizer, split)
        with console.status(f"{split}: text"):
            whole &= without(compared.problems())
        seconds = time.perf_counter() - started
        rate = manifest.tokens(split) / seconds
        held = f"checksums, ids and ends of texts hold; {compared.sentence}" if whole else "problems, see above"
        console.print(
            f"{split:<12} {manifest.tokens(split):>14,} tokens  {rate / 1e6:6.2f} M tokens/s  {held}",
            highlight=False,
            soft_wrap=True,
        )
    if len(problems) > 1:
        raise InputError(f"{len(problems):,} problems in {manifest.folder}, the first: {problems[0]}")
    if problems:
        raise InputError(problems[0])


def token_problems(manifest: Manifest, split: str) -> Iterator[str]:
    """Every id is in the vocabulary, and end-of-text stands at the end of each text and nowhere else."""
    reader = manifest.open(split)
    last = np.cumsum(reader.sequence_lengths(), dtype=np.int64) - 1
    highest = ends = closed = 0
    lowest, outside, first_outside, first_open = 0, 0, -1, -1
    for start in range(0, len(reader), CHUNK_TOKENS):
        tokens = reader.read(start, min(CHUNK_TOKENS, len(reader) - start))
        highest, lowest = max(highest, int(tokens.max())), min(lowest, int(tokens.min()))
        foreign = np.flatnonzero((tokens >= manifest.vocab_size) | (tokens < 0))
        if len(foreign) and not outside:
            first_outside = start + int(foreign[0])
        outside += len(foreign)
        ended = tokens == manifest.end_of_text
        ends += int(ended.sum())
        begin, end = np.searchsorted(last, (start, start + len(tokens)))
        unclosed = np.flatnonzero(~ended[last[begin:end] - start])
        if len(unclosed) and first_open < 0:
            first_open = (int(begin) + int(unclosed[0])) // manifest.sequences_per_document
        closed += int(end - begin) - len(unclosed)
    if outside:
        worst = lowest if lowest < 0 else highest
        first = reader.documents_of(first_outside, 1)[0]
        yield (
            f"Split {split} holds id {worst}, the vocabulary has {manifest.vocab_size}: {outside:,} ids are not in it, "
            f"the first in document {first}; {REMAKE}."
        )
    if not ends == closed == len(last):
        kind = "texts, two a pair," if manifest.pairs else "documents,"
        first = f" (document {first_open} is the first without)" if first_open >= 0 else ""
        yield (
            f"Split {split} has {len(last)} {kind} {closed} of which end in end-of-text{first}, "
            f"and {ends} such tokens; these have to be equal: {REMAKE}."
        )


class Compared:
    """Decoded documents, spread over a split, against their text in Parquet.

    A tokenizer that does not keep all of a text is held to what it makes of it.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, split: str):
        self.manifest, self.tokenizer, self.split = manifest, tokenizer, split
        self.documents = 0

    def problems(self) -> Iterator[str]:
        reader = self.manifest.open(self.split)
        stride = max(1, reader.documents // COMPARED_DOCUMENTS)
        found = -1
        for found, (id, *scalars) in enumerate(source_rows(self.manifest, self.split)):
            if found % stride == 0:
                self.documents += 1
                texts = [scalar.as_py() for scalar in scalars]
                if not self.tokenizer.lossless:
                    texts = [self.tokenizer.decode(self.tokenizer.encode(text)) for text in texts]
                if found >= reader.documents or self.decoded(reader.sequences(found)) != texts:
                    yield (
                        f"Document {found} of split {self.split} ({id}) does not decode to its text in Parquet: "
                        f"{REMAKE}."
                    )
        if self.documents and found + 1 != reader.documents:
            yield (
                f"Split {self.split} has {reader.documents:,} documents in shards and {found + 1:,} in Parquet: "
                f"{REMAKE}."
            )

    def decoded(self, sequences: list[np.ndarray]) -> list[str]:
        return [self.tokenizer.decode(ids[:-1]) for ids in sequences]

    @property
    def sentence(self) -> str:
        if not self.documents:
            return "no Parquet beside it to compare text with"
        text = f"{self.documents} {'pairs' if self.manifest.pairs else 'documents'} equal their text"
        return text if self.tokenizer.lossless else f"{text} as far as this tokenizer keeps it (encoded and decoded)"


def source_rows(manifest: Manifest, split: str) -> Iterator[tuple[Any, ...]]:
    """Id and text, of pairs the target, too, of each document of a split, in their order, as Arrow scalars."""
    for batch in parquet_batches(manifest, split):
        yield from zip(batch.column("id"), *document.sides(batch).values(), strict=True)
