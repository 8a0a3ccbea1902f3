"""Look at a prepared corpus on the terminal: counts, histograms, one document, and where documents are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep import places, statistics
from data_prep.corpus import open_corpus
from data_prep.document import SIDES
from data_prep.files import InputError
from data_prep.indexed import IndexedTokens, pairs_of_files
from data_prep.places import Located
from data_prep.shards import MANIFEST, Manifest
from data_prep.tokenizer import Tokenizer

BAR = 30
TOP_TOKENS = 20
AROUND = 60
LISTED = 10


def table(folder: Path, console: Console) -> None:
    """Print documents, bytes and tokens of every split and source."""
    manifest, _ = open_corpus(folder)
    counts = Table("split", "source", box=box.SIMPLE_HEAD)
    for heading in ("documents", "MB", "tokens", "bytes/token"):
        counts.add_column(heading, justify="right")
    for count in statistics.counts(manifest):
        size, ratio = f"{count.text_bytes / 1e6:.2f}", f"{count.bytes_per_token:.2f}"
        counts.add_row(count.split, count.source, f"{count.documents:,}", size, f"{count.tokens:,}", ratio)
    console.print(counts)
    console.print(
        f"{manifest.folder}: {manifest.vocab_size:,} ids as {manifest.dtype}, fingerprint {manifest.fingerprint[:16]}",
        highlight=False,
    )


def histograms(folder: Path, split: str, console: Console) -> None:
    """Print how long the documents of a split are, by source, and which tokens it has most often."""
    manifest, tokenizer = open_corpus(folder)
    for lengths in statistics.document_lengths(manifest, split):
        kind = "pairs" if manifest.pairs else "documents"
        bars = Table(f"tokens of {kind}", kind, "", title=f"{split}, {lengths.source}", **TABLE)
        most = int(lengths.bins.max())
        for power, number in enumerate(lengths.bins.tolist()):
            if lengths.bins[: power + 1].any():
                bars.add_row(span(power), f"{number:,}", bar(number / most))
        console.print(bars)
        points = zip(statistics.PERCENTILES, lengths.percentiles, strict=True)
        inner = ", ".join(f"{point} % up to {length:,}" for point, length in points)
        console.print(
            f"shortest {lengths.shortest:,}, {inner}, longest {lengths.longest:,}\n", highlight=False, soft_wrap=True
        )
    counts = statistics.token_counts(manifest, split)
    total = int(counts.sum())
    tokens = Table("rank", "id", "token", "times", "share", "", title=f"{split}, tokens by frequency", **TABLE)
    order = np.argsort(-counts, kind="stable")[:TOP_TOKENS].tolist()
    for rank, token in enumerate(order, 1):
        share = int(counts[token]) / total
        row = (str(rank), str(token), spelling(tokenizer, token), f"{int(counts[token]):,}", f"{share:.2%}")
        tokens.add_row(*row, bar(int(counts[token]) / int(counts[order[0]])))
    console.print(tokens)
    used = int((counts > 0).sum())
    console.print(f"{used:,} of {manifest.vocab_size:,} ids occur, in {total:,} tokens", highlight=False)


TABLE = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold"}


def span(power: int) -> str:
    """The name of the bin of 2^power and more tokens."""
    return "1" if power == 0 else f"{2**power:,} to {2 ** (power + 1) - 1:,}"


def bar(share: float) -> str:
    """A bar of this share of the width; the least is not nothing."""
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8].strip() or ("▏" if share > 0 and not eighths else ""))


def spelling(tokenizer: Tokenizer, token: int) -> str:
    """What a token spells, so that white space and unprintable characters are seen."""
    text = tokenizer.decode(np.array([token]))
    return repr(text if text or token != tokenizer.end_of_text else "<|endoftext|>")


def show(folder: Path, split: str, k: int, console: Console) -> None:
    """Print document `k` of a split: where it is from, and its text, of a pair both sides, as the tokens spell it."""
    manifest, tokenizer = open_corpus(folder)
    reader = manifest.open(split)
    sequences = reader.sequences(k)
    located = places.locate(manifest, reader, split, k)
    console.print(f"{sentence(located)}\n", markup=False, highlight=False, soft_wrap=True)
    for side, ids in zip(SIDES, sequences, strict=False):
        if manifest.pairs:
            console.print(f"{side}, {len(ids):,} tokens:", highlight=False)
        console.print(tokenizer.decode(ids[:-1]), markup=False, highlight=False, soft_wrap=True)


def sentence(located: Located) -> str:
    """One line on where a document is."""
    name = f", id {located.id!r}" if located.id is not None else ""
    place = located.place
    return (
        f"document {located.number} of {located.split}: source {located.source}{name}, {place.tokens:,} tokens, "
        f"shard {place.shard.file} row {place.row} offset {place.offset}"
    )


def identified(folder: Path, splits: Sequence[str], id: str, console: Console) -> None:
    """Print where all documents with this id are: split, number, shard and offset. InputError where there is none."""
    manifest, _ = open_corpus(folder)
    number = 0
    for split in with_tokens(manifest, splits):
        reader = manifest.open(split)
        for k in places.numbers_of(manifest, split, id):
            number += 1
            if number <= LISTED:
                line = sentence(places.locate(manifest, reader, split, k))
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if number > LISTED:
        console.print(f"... and {number - LISTED:,} more with this id", highlight=False)
    if not number:
        where = "there is no Parquet beside the shards" if not any_parquet(manifest) else "ids are in `split/`"
        raise InputError(f"No document of {', '.join(splits)} has the id {id!r}: {where}; `--find` searches the text.")


def any_parquet(manifest: Manifest) -> bool:
    return any((manifest.folder.parent / "split").glob("*/*.parquet"))


def with_tokens(manifest: Manifest, splits: Sequence[str]) -> list[str]:
    """Those of the splits that have tokens; InputError for one that was named and has none."""
    if len(splits) == 1:
        manifest.shards(splits[0])
    return [split for split in splits if manifest.splits.get(split)]


def show_at(folder: Path, shard: str, offset: int, console: Console) -> None:
    """Print the document that a token of a shard is of, and the text around that token."""
    manifest, tokenizer = open_corpus(folder)
    split, k = places.at_offset(manifest, shard, offset)
    reader = manifest.open(split)
    located = places.locate(manifest, reader, split, k)
    console.print(sentence(located), markup=False, highlight=False, soft_wrap=True)
    ids, at = reader.document(k), offset - located.place.offset
    before, after = tokenizer.decode(ids[max(0, at - AROUND) : at]), tokenizer.decode(ids[at + 1 :][:AROUND])
    console.print(f"token {at} of it is id {ids[at]}, {spelling(tokenizer, int(ids[at]))}, in", highlight=False)
    here = tokenizer.decode(ids[at : at + 1])
    console.print(f"{before}[{here}]{after}", markup=False, highlight=False, soft_wrap=True)


def found(folder: Path, splits: Sequence[str], text: str, ignore_case: bool, limit: int, console: Console) -> None:
    """Print the first places where a string stands in the text, and how many there are in all."""
    if not text:
        raise InputError("--find is empty: give the text to look for.")
    manifest, tokenizer = open_corpus(folder)
    matches = documents = 0
    for split in with_tokens(manifest, splits):
        reader = manifest.open(split)
        result = places.find(manifest, tokenizer, split, text, ignore_case, max(0, limit - matches))
        for match in result.first:
            located = places.locate(manifest, reader, split, match.number)
            side = f"{match.side}, " if manifest.pairs else ""
            console.print(sentence(located), markup=False, highlight=False, soft_wrap=True)
            around = snippet(match.text, match.offset, len(text))
            console.print(
                f"    {side}character {match.offset}: {around}", markup=False, highlight=False, soft_wrap=True
            )
        matches, documents = matches + result.matches, documents + result.documents
    shown = f", the first {limit} shown" if matches > limit else ""
    kind = "pairs" if manifest.pairs else "documents"
    console.print(f"{text!r}: {matches:,} times in {documents:,} {kind}{shown}", markup=False, highlight=False)


def snippet(text: str, offset: int, length: int) -> str:
    """What stands around a match, on one line."""
    start, stop = max(0, offset - AROUND), offset + length + AROUND
    line = " ".join(text[start:stop].split())
    return f"{'...' if start else ''}{line}{'...' if stop < len(text) else ''}"


def is_foreign(folder: Path) -> bool:
    """Whether this is no corpus of ours but an indexed data set, or has some."""
    if any((place / MANIFEST).is_file() for place in (folder, folder / "tokens")):
        return False
    if folder.is_dir():
        return next(folder.rglob("*.idx"), None) is not None
    return folder.suffix in (".bin", ".idx") or folder.with_name(f"{folder.name}.idx").is_file()


def foreign(folder: Path, k: int | None, tokenizer: Path | None, console: Console) -> None:
    """Print what indexed data sets without a manifest hold, or document `k` of one."""
    reads = Tokenizer.load(tokenizer) if tokenizer else None
    files = pairs_of_files(folder)
    if k is not None:
        if len(files) > 1:
            raise InputError(f"{folder} has {len(files)} indexed data sets: give the .bin file of one with --document.")
        data = IndexedTokens(files[0])
        for number, ids in enumerate(data.sequences(k)):
            console.print(f"document {k} of {data.bin}, sequence {number}, {len(ids):,} tokens\n", highlight=False)
            text = reads.decode(ids.astype(np.int64)) if reads else " ".join(map(str, ids.tolist()))
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    rows = Table("file", "type", box=box.SIMPLE_HEAD)
    for heading in ("documents", "sequences", "tokens", "last id of documents"):
        rows.add_column(heading, justify="right")
    for file in files:
        data = IndexedTokens(file)
        counts = data.documents, len(data.lengths), data.tokens
        rows.add_row(str(file), data.dtype, *(f"{count:,}" for count in counts), last_id(data))
    console.print(rows)
    console.print(
        "No manifest: these are Megatron-LM's files as they stand; `python -m data_prep adopt` makes a corpus of them.",
        highlight=False,
    )


def last_id(data: IndexedTokens) -> str:
    ends = data.last_ids()
    most = max(ends, key=ends.__getitem__, default=None)
    return "" if most is None else f"{most} in {ends[most] / sum(ends.values()):.0%}"
