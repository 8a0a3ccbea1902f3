"""The two last stages: train a tokenizer on the train split, and turn documents or pairs of all splits into shards."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_prep import document
from data_prep.document import DocumentFile
from data_prep.fertility import fertility
from data_prep.files import InputError, sha256_file
from data_prep.overlap import Behind
from data_prep.shards import SPLITS, Manifest, Shard, ShardWriter, dtype_for, shard_file
from data_prep.tokenizer import END_OF_TEXT, Encoder, Tokenizer
from data_prep.tokenizer_files import FILE, read_tokenizer, with_end_of_text
from data_prep.units import DIGESTS, Phase, Steps, Unit, link

SAMPLE_DOCUMENTS = 64
SAMPLE_CHARACTERS = 4_000
# The engine has threads of its own, which keep the cores of a small machine busy; to import and prepare it takes half a second.
ENCODE_BYTES = 2**30
GROUP_BYTES = 2**28
# Enough for its threads to be busy most of the time.
ENCODED_AT_ONCE = 2**24


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: one trained on the train split, or one that exists."""

    kind: Literal["bpe", "unigram", "char", "word"] = "bpe"
    """`bpe` and `unigram` are byte-level: any text comes back whole. `char` has each character of the train split as it
    stands, U+FFFD for all others. `word` takes the most frequent words as they stand between white
    space, `<unk>` for all others and `<eos>` for the end of a line."""
    vocab_size: int = 4096
    """Ids of a trained tokenizer. Of `bpe` and `unigram`: 256 bytes, the end-of-text token and the merges or pieces. Of
    `word`, at most: `<unk>`, `<eos>`, the words and the end-of-text token; of `char`, too."""
    train_bytes: int = 200_000_000
    """Train on about this much text at most, chosen evenly over the train split."""
    path: str | None = None
    """Use this tokenizer and train none: a `tokenizer.json`, GPT-2's `encoder.json` with `vocab.bpe` beside it, or a folder
    with either."""
    end_of_text: str | None = None
    """What `path` calls the token between documents, where that is not <|endoftext|>; it is renamed, and keeps its id. Unset:
    the usual names are tried."""

    def __post_init__(self) -> None:
        if self.end_of_text is not None and self.path is None:
            raise InputError(
                f"tokenizer.end_of_text is {self.end_of_text!r}, but only a tokenizer of tokenizer.path can have another name for "
                "it: leave it away."
            )

    def settings(self) -> dict[str, Any]:
        """All settings on which a trained tokenizer depends."""
        return {name: value for name, value in asdict(self).items() if name != "end_of_text"}

    def existing(self) -> tuple[Tokenizer, str | None]:
        """The tokenizer of `path`, and a notice where its end-of-text token was renamed."""
        assert self.path is not None
        content = read_tokenizer(Path(self.path), END_OF_TEXT)
        content, notice = with_end_of_text(content, self.end_of_text, END_OF_TEXT, self.path)
        try:
            return tokenizer_of(content), notice
        except ValueError as error:
            raise InputError(f"The tokenizer {self.path} cannot be used. {error}") from None


TRAINERS = {
    "bpe": Tokenizer.train,
    "unigram": Tokenizer.train_unigram,
    "char": Tokenizer.train_characters,
    "word": Tokenizer.train_words,
}


def make_tokenizer(
    config: TokenizerConfig, folder: Path, sources: list[str], train_bytes: int, target: Path
) -> dict[str, Any]:
    """Train or copy the tokenizer; `train_bytes` is the size of the train split."""
    if config.path is not None:
        tokenizer, notice = config.existing()
        if notice:
            print(notice)
    else:
        share = config.train_bytes / max(train_bytes, 1)
        tokenizer = TRAINERS[config.kind](training_texts(folder / "train", sources, share), config.vocab_size)
    tokenizer.save(target)
    sample = fertility(tokenizer, folder / "train", sources)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint, "fertility": sample}


def training_texts(folder: Path, sources: list[str], share: float) -> Iterator[str]:
    """The texts of about this share of the documents, chosen by a hash of the id that is not the split's."""
    for source in sources:
        for batch, own_share in document.some(folder, source, min(share, 1.0), "tokenizer"):
            columns = [column.to_pylist() for column in document.sides(batch).values()]
            for id, *texts in zip(batch.column("id").to_pylist(), *columns, strict=True):
                place = int.from_bytes(hashlib.sha256(b"tokenizer " + id.encode()).digest()[:8], "big") / 2**64
                if own_share >= 1 or place < own_share:
                    yield from texts


def tokenizing(
    tokenizer_folder: Path,
    fingerprint: str,
    files: Mapping[str, Mapping[str, Sequence[DocumentFile]]],
    sources: list[dict[str, Any]],
    pairs: bool,
    shard_tokens: int,
) -> Steps:
    """The stage that encodes every document, an end-of-text token after each text, and writes shards, manifest and tokenizer.

    `fingerprint` is the tokenizer's, `files` are those of each split and source, `sources` the entries of the manifest; `pairs` says that documents have a target.
    """
    content = sha256_file(tokenizer_folder / FILE)
    tokenizer = loaded(tokenizer_folder, content)
    names = [source["name"] for source in sources]
    sample = next((files["train"][name][0].path for name in names if files["train"][name]), None)
    engine = partial(prepared_encoder, tokenizer_folder, content, sample)
    dtype, sequences = dtype_for(tokenizer.vocab_size), 2 if pairs else 1
    units: list[Unit] = []
    owners: list[tuple[str, str]] = []
    for split in SPLITS:
        for name in names:
            for group in in_groups(files[split][name]):
                paths = [file.path for file in group]
                call = partial(encode_files, paths, split, name, engine, dtype, sequences, shard_tokens)
                inputs = [split, name, [file.digest for file in group]]
                label = " to ".join(file.name for file in (group[0], group[-1])[: len(group)])
                units.append(Unit(label, call, inputs, sum(file.bytes for file in group)))
                owners.append((split, name))
    settings = [fingerprint, dtype, sequences, shard_tokens]
    outputs = yield Phase("encode", 1, settings, units, ENCODE_BYTES, threaded=True)

    def fill(target: Path) -> dict[str, Any]:
        for notice in dict.fromkeys(output.record["notice"] for output in outputs):
            if notice:
                print(notice)
        splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        numbers = Counter[tuple[str, str]]()
        for (split, name), output in zip(owners, outputs, strict=True):
            for entry in output.record["shards"]:
                shard = Shard(**entry)
                place = shard_file(split, name, numbers[split, name])
                numbers[split, name] += 1
                for suffix in shard.sha256:
                    link(output.folder / f"{shard.file}.{suffix}", target / f"{place}.{suffix}")
                splits[split].append(replace(shard, file=place))
        tokenizer.save(target)
        manifest = Manifest(
            target,
            dtype,
            tokenizer.vocab_size,
            tokenizer.end_of_text,
            fingerprint,
            sources,
            {split: tuple(shards) for split, shards in splits.items()},
            sequences,
        )
        manifest.save()
        every = [shard for shards in splits.values() for shard in shards]
        totals = {name: sum(getattr(shard, name) for shard in every) for name in ("documents", "tokens", "text_bytes")}
        return {**totals, "fingerprint": manifest.fingerprint}

    return fill


def in_groups(files: Sequence[DocumentFile]) -> Iterator[list[DocumentFile]]:
    """Consecutive files of about GROUP_BYTES of text: a shard ends with them, and may not be small for that."""
    group: list[DocumentFile] = []
    size = 0
    for file in files:
        if group and size + file.bytes > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.bytes
    if group:
        yield group


def encode_files(
    paths: Sequence[Path],
    split: str,
    source: str,
    engine: Callable[[], Encoder],
    dtype: str,
    sequences: int,
    shard_tokens: int,
    target: Path,
) -> dict[str, Any]:
    """Write the documents of some files of one split and source as shards, which are numbered from 0."""
    encoder = engine()
    end_of_text = encoder.tokenizer.end_of_text
    shards = ShardWriter(target, split, source, dtype, shard_tokens, sequences)
    with buffers_from_the_heap(), shards as writer, Behind() as behind:
        for texts in document.read_texts(paths, ENCODED_AT_ONCE):
            ids, lengths = encoder.encode(texts)
            ids = np.insert(ids.astype(dtype), np.cumsum(lengths), end_of_text)
            sizes = document.text_lengths(texts).reshape(-1, sequences).sum(axis=1)
            behind.do(writer.add, ids, lengths + 1, sizes)
    digests = {f"{shard.file}.{suffix}": each for shard in writer.shards for suffix, each in shard.sha256.items()}
    return {"notice": encoder.notice, "shards": [asdict(shard) for shard in writer.shards], DIGESTS: digests}


@contextmanager
def buffers_from_the_heap() -> Iterator[None]:
    """Arrow's own allocator gives memory back after a hundredth of a second, and takes as long to have it again as the encoder to fill it."""
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


@lru_cache(1)
def tokenizer_of(content: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`; stages that follow each other have the same."""
    return Tokenizer(content)


@lru_cache(1)
def loaded(folder: Path, digest: str) -> Tokenizer:
    """The tokenizer of a folder whose file has this digest."""
    return tokenizer_of(read_tokenizer(folder, END_OF_TEXT))


@lru_cache(1)
def prepared_encoder(tokenizer_folder: Path, content: str, sample: Path | None) -> Encoder:
    """The encoder of the tokenizer whose file has this digest, tried on the first documents of a file."""
    texts: list[str] = []
    for batch in document.read_file(sample) if sample else ():
        texts = [
            text[:SAMPLE_CHARACTERS] for text in document.texts_in_turn(batch.slice(0, SAMPLE_DOCUMENTS)).to_pylist()
        ]
        break
    return Encoder(loaded(tokenizer_folder, content), texts[:SAMPLE_DOCUMENTS])
