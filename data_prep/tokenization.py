"""The two last stages: train a tokenizer on the train split, and turn documents or pairs of all splits into shards."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep import document
from data_prep.fertility import fertility
from data_prep.files import InputError
from data_prep.shards import SPLITS, Manifest, ShardWriter, dtype_for
from data_prep.tokenizer import END_OF_TEXT, Encoder, Tokenizer
from data_prep.tokenizer_files import read_tokenizer, with_end_of_text

SAMPLE_DOCUMENTS = 64
SAMPLE_CHARACTERS = 20_000


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
            return Tokenizer(content), notice
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
