"""The two last stages: train a tokenizer on the train split, and turn the documents of all splits into token shards."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import document
from data_prep.shards import SPLITS, Manifest, ShardWriter, dtype_for
from data_prep.tokenizer import Encoder, Tokenizer

SAMPLE_DOCUMENTS = 64
SAMPLE_CHARACTERS = 20_000


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer: a byte-level BPE trained on the train split, or one that exists."""

    vocab_size: int = 4096
    """Ids of a trained tokenizer: 256 bytes, the end-of-text token and the merges."""
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
        tokenizer = Tokenizer.train(training_texts(folder / "train", sources, share), config.vocab_size)
    tokenizer.save(target)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}


def training_texts(folder: Path, sources: list[str], share: float) -> Iterator[str]:
    """The texts of about this share of the documents, chosen by a hash of the id that is not the split's."""
    for source in sources:
        for batch in document.read(folder, source):
            for id, text in zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True):
                place = int.from_bytes(hashlib.sha256(b"tokenizer " + id.encode()).digest()[:8], "big") / 2**64
                if share >= 1 or place < share:
                    yield text


def tokenize(
    tokenizer_folder: Path, folder: Path, sources: list[dict[str, Any]], shard_tokens: int, target: Path
) -> dict[str, Any]:
    """Encode every document, an end-of-text token after each, and write shards, manifest and tokenizer.

    `sources` are the entries of the manifest.
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
    splits = {}
    for split in SPLITS:
        shards = []
        for name in names:
            with ShardWriter(target, split, name, dtype, shard_tokens) as writer:
                for batch in document.read(folder / split, name):
                    texts = batch.column("text")
                    ids, lengths = encoder.encode(texts)
                    ids = np.insert(ids, np.cumsum(lengths), tokenizer.end_of_text)
                    writer.add(ids, lengths + 1, document.text_lengths(texts))
            shards += writer.shards
        splits[split] = tuple(shards)
    tokenizer.save(target)
    manifest = Manifest(
        target, dtype, tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, sources, splits
    )
    manifest.save()
    every = [shard for shards in splits.values() for shard in shards]
    totals = {name: sum(getattr(shard, name) for shard in every) for name in ("documents", "tokens", "text_bytes")}
    return {**totals, "fingerprint": manifest.fingerprint}
