"""The two last stages: train a tokenizer on the train split, and turn documents or pairs of all splits into shards."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep import document
from data_prep.document import DocumentFile
from data_prep.fertility import fertility
from data_prep.files import InputError
from data_prep.shards import SPLITS, Manifest, Shard, ShardWriter, dtype_for
from data_prep.tokenizer import END_OF_TEXT, Encoder, Tokenizer
from data_prep.tokenizer_files import read_tokenizer, with_end_of_text
from data_prep.units import DIGESTS, Phase, Steps, Unit, link

SAMPLE_DOCUMENTS = 64
SAMPLE_CHARACTERS = 20_000
# The engine has threads of its own, which keep the cores of a small machine busy.
ENCODE_BYTES = 2**30
IDS, LENGTHS, SIZES = "ids.bin", "lengths.npy", "sizes.npy"


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
        for batch, own_share in document.some(folder, source, min(share, 1.0), "tokenizer"):
            columns = [column.to_pylist() for column in document.sides(batch).values()]
            for id, *texts in zip(batch.column("id").to_pylist(), *columns, strict=True):
                place = int.from_bytes(hashlib.sha256(b"tokenizer " + id.encode()).digest()[:8], "big") / 2**64
                if own_share >= 1 or place < own_share:
                    yield from texts


def tokenizing(
    tokenizer_folder: Path,
    files: Mapping[str, Mapping[str, Sequence[DocumentFile]]],
    sources: list[dict[str, Any]],
    pairs: bool,
    shard_tokens: int,
) -> Steps:
    """The stage that encodes every document, an end-of-text token after each text, and writes shards, manifest and tokenizer.

    `files` are those of each split and source, `sources` the entries of the manifest; `pairs` says that documents have a target.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    dtype, sequences = dtype_for(tokenizer.vocab_size), 2 if pairs else 1
    names = [source["name"] for source in sources]
    sample = next((files["train"][name][0].path for name in names if files["train"][name]), None)
    engine = partial(prepared_encoder, tokenizer_folder, tokenizer.fingerprint, sample)
    units: list[Unit] = []
    owners: list[tuple[str, str]] = []
    for split in SPLITS:
        for name in names:
            for file in files[split][name]:
                call = partial(encode_file, file.path, engine, dtype, sequences)
                units.append(Unit(file.name, call, file.digest, file.bytes, hashed=False))
                owners.append((split, name))
    encoded = yield Phase("encode", 1, [tokenizer.fingerprint, dtype, sequences], units, ENCODE_BYTES, scratch=True)
    parts = {
        owner: [o for o, of in zip(encoded, owners, strict=True) if of == owner] for owner in dict.fromkeys(owners)
    }
    units = []
    for (split, name), own in parts.items():
        call = partial(write_shards, [output.folder for output in own], split, name, dtype, shard_tokens, sequences)
        inputs = [split, name, [output.key for output in own]]
        units.append(Unit(f"{split} of {name}", call, inputs, sum(output.files[IDS][0] for output in own)))
    written = yield Phase("shards", 1, [dtype, sequences, shard_tokens], units, ENCODE_BYTES)

    def fill(target: Path) -> dict[str, Any]:
        for notice in dict.fromkeys(output.record["notice"] for output in encoded):
            if notice:
                print(notice)
        splits: dict[str, tuple[Shard, ...]] = {}
        for (split, _), output in zip(parts, written, strict=True):
            for file in output.files:
                link(output.folder / file, target / file)
            splits[split] = (*splits.get(split, ()), *(Shard(**shard) for shard in output.record["shards"]))
        tokenizer.save(target)
        manifest = Manifest(
            target,
            dtype,
            tokenizer.vocab_size,
            tokenizer.end_of_text,
            tokenizer.fingerprint,
            sources,
            {split: splits.get(split, ()) for split in SPLITS},
            sequences,
        )
        manifest.save()
        every = [shard for shards in splits.values() for shard in shards]
        totals = {name: sum(getattr(shard, name) for shard in every) for name in ("documents", "tokens", "text_bytes")}
        return {**totals, "fingerprint": manifest.fingerprint}

    return fill


def encode_file(path: Path, engine: Callable[[], Encoder], dtype: str, sequences: int, target: Path) -> dict[str, Any]:
    """Write the ids of a file's documents one after another, the ids of each sequence, and the bytes of each document."""
    encoder = engine()
    end_of_text = encoder.tokenizer.end_of_text
    lengths: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    with open(target / IDS, "wb") as stream:
        for batch in document.read_file(path):
            texts = document.texts_in_turn(batch)
            ids, counts = encoder.encode(texts)
            np.insert(ids, np.cumsum(counts), end_of_text).astype(dtype).tofile(stream)
            lengths.append((counts + 1).astype(np.int32))
            sizes.append(document.text_lengths(texts).reshape(-1, sequences).sum(axis=1))
    np.save(target / LENGTHS, np.concatenate([np.empty(0, np.int32), *lengths]))
    np.save(target / SIZES, np.concatenate([np.empty(0, np.int64), *sizes]))
    return {"notice": encoder.notice}


@lru_cache(1)
def prepared_encoder(tokenizer_folder: Path, fingerprint: str, sample: Path | None) -> Encoder:
    """The encoder of the tokenizer that has this fingerprint, tried on the first documents of a file."""
    texts: list[str] = []
    for batch in document.read_file(sample) if sample else ():
        texts = [
            text[:SAMPLE_CHARACTERS] for text in document.texts_in_turn(batch.slice(0, SAMPLE_DOCUMENTS)).to_pylist()
        ]
        break
    return Encoder(Tokenizer.load(tokenizer_folder), texts[:SAMPLE_DOCUMENTS])


def write_shards(
    folders: Sequence[Path], split: str, source: str, dtype: str, shard_tokens: int, sequences: int, target: Path
) -> dict[str, Any]:
    """Write what `encode_file` wrote into these folders, in turn, as shards of one split and source."""
    with ShardWriter(target, split, source, dtype, shard_tokens, sequences) as writer:
        for folder in folders:
            lengths, sizes = np.load(folder / LENGTHS), np.load(folder / SIZES)
            if len(lengths):
                writer.add(np.memmap(folder / IDS, dtype, "r"), lengths, sizes)
    digests = {f"{shard.file}.{suffix}": each for shard in writer.shards for suffix, each in shard.sha256.items()}
    return {"shards": [asdict(shard) for shard in writer.shards], DIGESTS: digests}
