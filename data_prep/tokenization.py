"""The two last stages: train a tokenizer on the train split, and turn documents or pairs of all splits into shards."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep import document
from data_prep.shards import SPLITS, Manifest, ShardWriter, dtype_for
from data_prep.tokenizer import Encoder, Tokenizer

SAMPLE_DOCUMENTS = 64
SAMPLE_CHARACTERS = 20_000


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: one trained on the train split, or one that exists."""

    kind: Literal["bpe", "word"] = "bpe"
    """`bpe` is byte-level: any text comes back whole. `word` takes the most frequent words as they stand between white
    space, `<unk>` for all others and `<eos>` for the end of a line."""
    vocab_size: int = 4096
    """Ids of a trained tokenizer. Of `bpe`: 256 bytes, the end-of-text token and the merges. Of `word`, at most:
    `<unk>`, `<eos>`, the words and the end-of-text token."""
    train_bytes: int = 200_000_000
    """Train on about this much text at most, chosen evenly over the train split."""
    path: str | None = None
    """Use this `tokenizer.json` and train none."""


def make_tokenizer(
    config: TokenizerConfig, folder: Path, sources: list[str], train_bytes: int, target: Path
) -> dict[str, Any]:
    """Train or copy the tokenizer; `train_bytes` is the size of the train split."""
    if config.path is not None:
        tokenizer = Tokenizer.load(config.path)
    else:
        share = config.train_bytes / max(train_bytes, 1)
        train = {"bpe": Tokenizer.train, "word": Tokenizer.train_words}[config.kind]
        tokenizer = train(training_texts(folder / "train", sources, share), config.vocab_size)
    tokenizer.save(target)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}


def training_texts(folder: Path, sources: list[str], share: float) -> Iterator[str]:
    """The texts of about this share of the documents, chosen by a hash of the id that is not the split's."""
    for source in sources:
        for batch in document.read(folder, source):
            columns = [column.to_pylist() for column in document.sides(batch).values()]
            for id, *texts in zip(batch.column("id").to_pylist(), *columns, strict=True):
                place = int.from_bytes(hashlib.sha256(b"tokenizer " + id.encode()).digest()[:8], "big") / 2**64
                if share >= 1 or place < share:
                    yield from texts


def tokenize(
    tokenizer_folder: Path, folder: Path, sources: list[dict[str, Any]], pairs: bool, shard_tokens: int, target: Path
) -> dict[str, Any]:
    """Encode every document, an end-of-text token after each text, and write shards, manifest and tokenizer.

    `sources` are the entries of the manifest; `pairs` says that documents have a target.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    names = [source["name"] for source in sources]
    sample = [
        text[:SAMPLE_CHARACTERS] for text in islice(training_texts(folder / "train", names, 1.0), SAMPLE_DOCUMENTS)
    ]
    encoder = Encoder(tokenizer, sample)
    if encoder.notice:
        print(encoder.notice)
    dtype = dtype_for(tokenizer.vocab_size)
    sequences = 2 if pairs else 1
    splits = {}
    for split in SPLITS:
        shards = []
        for name in names:
            with ShardWriter(target, split, name, dtype, shard_tokens, sequences) as writer:
                for batch in document.read(folder / split, name):
                    texts = document.texts_in_turn(batch)
                    ids, lengths = encoder.encode(texts)
                    ids = np.insert(ids, np.cumsum(lengths), tokenizer.end_of_text)
                    writer.add(ids, lengths + 1, document.text_lengths(texts).reshape(-1, sequences).sum(axis=1))
            shards += writer.shards
        splits[split] = tuple(shards)
    tokenizer.save(target)
    manifest = Manifest(
        target, dtype, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, sources, splits, sequences
    )
    manifest.save()
    every = [shard for shards in splits.values() for shard in shards]
    totals = {name: sum(getattr(shard, name) for shard in every) for name in ("documents", "tokens", "text_bytes")}
    return {**totals, "fingerprint": manifest.fingerprint}
