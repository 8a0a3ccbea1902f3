"""How many bytes of text a token stands for, by source: measured on a sample when a tokenizer is made."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep import document
from data_prep.tokenizer import Tokenizer

SAMPLE_GROUPS = 8
SAMPLE_BYTES = 2**18
READ_DOCUMENTS = 64


def fertility(tokenizer: Tokenizer, folder: Path, sources: list[str]) -> dict[str, dict[str, int]]:
    """Texts, bytes, words (what stands between white space) and tokens of a sample of each source that has documents.

    The sample is the beginnings of row groups that lie evenly in the source, about a quarter of a megabyte.
    """
    counts = {}
    for source in sources:
        groups = sum(1 for _ in document.row_groups(folder, source))
        wanted = set(np.linspace(0, groups - 1, min(groups, SAMPLE_GROUPS)).astype(int).tolist()) if groups else set()
        total: dict[str, int] = dict.fromkeys(("texts", "text_bytes", "words", "tokens"), 0)
        for number, (parquet, group, _) in enumerate(document.row_groups(folder, source)):
            if number in wanted:
                sample = beginning(parquet, group, SAMPLE_BYTES // len(wanted))
                for name, value in sample_counts(tokenizer, sample).items():
                    total[name] += value
        if total["texts"]:
            counts[source] = total
    return counts


def beginning(parquet: pq.ParquetFile, group: int, size: int) -> pa.Array:
    """The first texts of a row group, as many as `size` bytes hold, but at least one."""
    parts: list[pa.Array] = []
    left = size
    # Only what is asked for is decompressed.
    for batch in parquet.iter_batches(READ_DOCUMENTS, row_groups=[group], use_threads=False):
        texts = document.texts_in_turn(batch)
        ends = np.cumsum(document.text_lengths(texts))
        fitting = int(np.searchsorted(ends, left, side="right"))
        parts.append(texts.slice(0, fitting if parts else max(fitting, 1)))
        if fitting < len(texts):
            break
        left -= int(ends[-1])
    return pa.concat_arrays(parts)


def sample_counts(tokenizer: Tokenizer, texts: pa.Array) -> dict[str, int]:
    """What `fertility` counts, of these texts."""
    sample = texts.to_pylist()
    tokens = sum(map(len, tokenizer.encode_batch(sample)))
    words = sum(len(text.split()) for text in sample)
    size = int(document.text_lengths(texts).sum())
    return {"texts": len(sample), "text_bytes": size, "words": words, "tokens": tokens}


def report(record: dict[str, Any], console: Console) -> None:
    """Print bytes per token and tokens per word by source, from the record of the stage that made the tokenizer."""
    table = Table(
        "source", box=box.SIMPLE_HEAD, title="fertility, on a sample of the train split", title_justify="left"
    )
    for heading in ("sample MB", "bytes/token", "tokens/word"):
        table.add_column(heading, justify="right")
    for source, counts in record.get("fertility", {}).items():
        tokens, words = max(counts["tokens"], 1), max(counts["words"], 1)
        size = counts["text_bytes"]
        table.add_row(source, f"{size / 1e6:.2f}", f"{size / tokens:.3f}", f"{counts['tokens'] / words:.3f}")
    if table.row_count:
        console.print(table)
