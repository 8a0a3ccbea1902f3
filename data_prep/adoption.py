"""Indexed data sets that others wrote become a corpus that training reads, with a manifest and their tokenizer: `adopt`.

Files that are as a corpus has them stay where they are, or are linked into a folder of their own. The others are written there
anew. What others wrote is never changed.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from data_prep import statistics
from data_prep.files import InputError, fingerprint, sha256_file, sync
from data_prep.foreign_documents import ForeignDocuments, Wishes
from data_prep.foreign_names import Origin, origins
from data_prep.indexed import IndexedTokens
from data_prep.shards import CODES, MANIFEST, SPLITS, Manifest, Shard, ShardWriter, dtype_for
from data_prep.tokenization import TokenizerConfig
from data_prep.tokenizer import FILE, Tokenizer

SHARD_TOKENS = 100_000_000
SAMPLED_FILES = 4
SAMPLED_DOCUMENTS = 32
SAMPLED_TOKENS = 2000


@dataclass(frozen=True)
class Adoption:
    """What is adopted, and how."""

    folder: Path
    """With `.bin` and `.idx` files in it or below it; or one of these files."""
    tokenizer: Path
    """The tokenizer that made the ids."""
    output: Path | None = None
    """A folder for the corpus; None to put the manifest and the tokenizer beside the files."""
    end_of_text: str | None = None
    """What the tokenizer calls the token between documents; None for the usual names."""
    source: str | None = None
    """One name for all documents; None to take it from each file's name."""
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of the files of each split, with wildcards."""
    wishes: Wishes = field(default_factory=Wishes)

    def __post_init__(self) -> None:
        if self.source is not None and not self.source.replace("_", "").replace("-", "").isalnum():
            raise InputError(f"--source {self.source!r} cannot name files: use letters, digits, - and _.")
        if self.wishes.pairs and self.wishes.cut:
            raise InputError("--pairs and --cut-at-end-of-text exclude one another: a pair cut in two is none.")


def adopt(adoption: Adoption, console: Console) -> Manifest:
    """Check all documents, write manifest and tokenizer, and print what there is. InputError where something does not hold."""
    target = (adoption.output or (adoption.folder if adoption.folder.is_dir() else adoption.folder.parent)).absolute()
    require_free(target, adoption)
    tokenizer = read_tokenizer(adoption, console)
    found, left_out = origins(adoption.folder, adoption.patterns, adoption.source)
    foreign = Foreign(tokenizer, adoption.wishes)
    if left_out:
        console.print(f"left out, as no pattern matches them: {', '.join(left_out)}", highlight=False, soft_wrap=True)
    types = {IndexedTokens(origin.path).dtype for origin in found}
    dtype = one if len(types) == 1 and (one := next(iter(types))) in CODES else dtype_for(tokenizer.vocab_size)
    for documents in map(foreign.open, found):
        documents.check_ends()
        if adoption.output is None and (why := documents.changes(dtype)):
            raise InputError(
                f"{documents.data.bin} cannot be used as it stands: {why}. Give --output FOLDER, and it is written there."
            )
    partial = target.with_name(f".{target.name}.partial") if adoption.output else target
    if adoption.output:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        manifest = Manifest(
            partial, dtype, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint,
            *taken(found, foreign, dtype, partial if adoption.output else None, console),
            2 if adoption.wishes.pairs else 1,
        )  # fmt: skip
        for split in (split for split, shards in manifest.splits.items() if shards):
            manifest.open(split)
        # A corpus is there when its manifest is, so that comes last.
        if not (partial / FILE).is_file():
            tokenizer.save(partial / FILE)
        manifest.save()
        if adoption.output:
            if target.is_dir():
                target.rmdir()
            partial.replace(target)
            sync(target.parent)
    except BaseException:
        if adoption.output:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    manifest = replace(manifest, folder=target)
    print_counts(manifest, adoption.output or target, console)
    return manifest


@dataclass(frozen=True)
class Foreign:
    """Opens files, one at a time: what is kept of each grows with its documents."""

    tokenizer: Tokenizer
    wishes: Wishes

    def open(self, origin: Origin) -> ForeignDocuments:
        return ForeignDocuments(IndexedTokens(origin.path), self.tokenizer, self.wishes)


def require_free(target: Path, adoption: Adoption) -> None:
    """InputError where something lies already that would be written over."""
    if adoption.output:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{adoption.output} is there already: give --output a new folder, or delete it.")
    elif (target / MANIFEST).exists():
        raise InputError(
            f"{target} has a {MANIFEST} already, so training reads it as it stands; delete that file to adopt it anew."
        )


def read_tokenizer(adoption: Adoption, console: Console) -> Tokenizer:
    """The tokenizer, with our name for its end-of-text token."""
    try:
        tokenizer, notice = TokenizerConfig(path=str(adoption.tokenizer), end_of_text=adoption.end_of_text).existing()
    except InputError as error:
        raise InputError(str(error).replace("tokenizer.end_of_text", "--end-of-text")) from None
    if notice:
        console.print(notice, markup=False, highlight=False, soft_wrap=True)
    beside = adoption.folder / FILE
    if adoption.output is None and beside.is_file() and Tokenizer.load(beside).fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"{beside} is another tokenizer{' (its end-of-text token was renamed)' if notice else ''}: "
            "give --output FOLDER, so that it stays as it is."
        )
    return tokenizer


def taken(
    found: list[Origin], foreign: Foreign, dtype: str, target: Path | None, console: Console
) -> tuple[list[dict[str, Any]], dict[str, tuple[Shard, ...]]]:
    """Sources and shards of a manifest: all files of a source and split linked, or all written anew where one has to be."""
    splits: dict[str, tuple[Shard, ...]] = {}
    hashes: dict[str, dict[str, str]] = {}
    for split in SPLITS:
        shards: list[Shard] = []
        for source, group in groupby((one for one in found if one.split == split), key=lambda one: one.source):
            own = list(group)
            digests = hashes.setdefault(source, {})
            reasons = dict.fromkeys(filter(None, (documents.changes(dtype) for documents in map(foreign.open, own))))
            with console.status(f"{split}, {source}: ids and ends of texts"):
                if reasons:
                    assert target is not None
                    console.print(
                        f"{split}, {source}: written anew, {'; '.join(reasons)}", highlight=False, soft_wrap=True
                    )
                    shards += rewritten(own, foreign, dtype, target, digests)
                else:
                    shards += as_they_stand(own, foreign, target, digests, console)
                notice_other_tokenizer(source, own, foreign, console)
        splits[split] = tuple(shards)
    every = [shard for shards in splits.values() for shard in shards]
    sources = []
    for source, digests in sorted(hashes.items()):
        of_source = [shard for shard in every if shard.source == source]
        counts = {name: sum(getattr(shard, name) for shard in of_source) for name in ("documents", "text_bytes")}
        settings = {"files": [*digests], **{name: value for name, value in asdict(foreign.wishes).items() if value}}
        content = fingerprint([*digests.values()])
        sources.append(
            {"name": source, "kind": "IndexedTokens", "settings": settings, **counts, "fingerprint": content}
        )
    return sources, splits


def as_they_stand(
    own: list[Origin], foreign: Foreign, target: Path | None, digests: dict[str, str], console: Console
) -> list[Shard]:
    """Files of one source and split where they are, or linked into a folder under the names that its shards have."""
    shards = []
    for origin in own:
        documents = foreign.open(origin)
        texts = tokens = text_bytes = 0
        for batch in documents.batches():
            texts, tokens = texts + len(batch.lengths), tokens + len(batch.ids)
            text_bytes += int(batch.text_bytes.sum())
        digests[origin.name] = documents.sha256.hexdigest()
        if not tokens:
            console.print(f"{origin.name} has no documents and is left out", highlight=False, soft_wrap=True)
            continue
        file = origin.name
        if target is not None:
            file = f"{origin.split}/{origin.source}-{len(shards):05d}"
            for suffix, path in (("bin", documents.data.bin), ("idx", documents.data.index)):
                link(path, target / f"{file}.{suffix}")
        sha256 = {"bin": digests[origin.name], "idx": sha256_file(documents.data.index)}
        count = texts // (2 if foreign.wishes.pairs else 1)
        shards.append(Shard(file, origin.source, count, tokens, text_bytes, sha256))
    return shards


def link(path: Path, target: Path) -> None:
    """The same file under another name, or a copy of it where one file system does not hold both."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:
        free, size = shutil.disk_usage(target.parent).free, path.stat().st_size
        if free < size:
            raise InputError(
                f"{path} has {size / 1e9:,.1f} GB, {target.parent} has room for {free / 1e9:,.1f} GB."
            ) from None
        shutil.copyfile(path, target)
        sync(target)


def rewritten(own: list[Origin], foreign: Foreign, dtype: str, target: Path, digests: dict[str, str]) -> list[Shard]:
    """The documents of one source and split as new shards."""
    first, each = own[0], 2 if foreign.wishes.pairs else 1
    with ShardWriter(target, first.split, first.source, dtype, SHARD_TOKENS, each) as writer:
        for origin in own:
            documents = foreign.open(origin)
            for batch in documents.batches():
                writer.add(batch.ids, batch.lengths, batch.text_bytes.reshape(-1, each).sum(axis=1))
            digests[origin.name] = documents.sha256.hexdigest()
    return writer.shards


def notice_other_tokenizer(source: str, own: list[Origin], foreign: Foreign, console: Console) -> None:
    """Say so where few documents are encoded to the ids that they have."""
    found = [foreign.open(origin).encoded_alike(SAMPLED_DOCUMENTS, SAMPLED_TOKENS) for origin in own[:SAMPLED_FILES]]
    same, looked = sum(same for same, _ in found), sum(looked for _, looked in found)
    # Nearly all have the same ids where the tokenizer is the right one.
    if same < 0.9 * looked:
        console.print(
            f"notice: {looked - same} of {looked} documents of {source} that were looked at have other ids than this tokenizer "
            "gives to their text: make sure that it is the one that made them",
            highlight=False,
            soft_wrap=True,
        )


def print_counts(manifest: Manifest, folder: Path, console: Console) -> None:
    rows = Table("split", "source", box=box.SIMPLE_HEAD)
    for heading in ("files", "documents", "MB", "tokens"):
        rows.add_column(heading, justify="right")
    for count in statistics.counts(manifest):
        files = sum(shard.source == count.source for shard in manifest.splits[count.split])
        size = f"{count.text_bytes / 1e6:,.2f}"
        rows.add_row(count.split, count.source, str(files), f"{count.documents:,}", size, f"{count.tokens:,}")
    console.print(rows)
    console.print(
        f"{folder / MANIFEST} written: data.path {folder} trains on it, `python -m data_prep verify {folder}` checks it",
        highlight=False,
        soft_wrap=True,
    )
