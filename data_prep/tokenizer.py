"""Tokenizers, byte-level BPE and unigram, whole words and characters: training, loading, and encoding a corpus fast.

`tokenizers` trains them and defines their format and their ids. `gigatoken` encodes a corpus by BPE to the same ids
many times faster, and characters are looked up in a table; else `tokenizers` does the work. Text never becomes a special token: "<|endoftext|>" inside a
document is encoded as plain text.
"""

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.characters import CharacterTable, character_tokenizer, is_of_characters
from data_prep.files import InputError, fingerprint, write_text
from data_prep.tokenizer_files import FILE, read_tokenizer, with_member
from data_prep.unigram import unigram_tokenizer

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {
    chr(code): bytes([byte])
    for code, byte in zip(
        [*PRINTED, *range(256, 512 - len(PRINTED))], [*PRINTED, *sorted({*range(256)} - {*PRINTED})], strict=True
    )
}
"""The byte that each character of a byte-level vocabulary stands for: itself, where it can be printed (Radford et al. 2019)."""


class Tokenizer:
    """Text to ids and back, with the ids of its `tokenizer.json`."""

    def __init__(self, content: str):
        """`content` is the text of a `tokenizer.json`."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(
                f"This is not a tokenizer that `tokenizers` {tokenizers.__version__} reads: {error}."
            ) from None
        # Special tokens mean what the program puts there, never what a document happens to contain.
        self._tokenizer.encode_special_tokens = True
        # Some files ask for these, for a model with a short context: no document would be whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.content = content
        end_of_text = self._tokenizer.token_to_id(END_OF_TEXT)
        if end_of_text is None:
            raise InputError(
                f"This tokenizer has no {END_OF_TEXT!r} token: documents need one between them, so add it."
            )
        self.end_of_text: int = end_of_text
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """Names the ids and their meaning, however the file is laid out."""
        return fingerprint(json.loads(self.content))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json` or GPT-2's two files, given as a file or as their folder."""
        content = read_tokenizer(Path(path), END_OF_TEXT)
        try:
            return cls(content)
        except ValueError as error:
            raise InputError(f"The tokenizer {path} cannot be used. {error}") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE with GPT-2's pre-tokenisation; the same texts give the same tokenizer, byte for byte."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if vocab_size <= len(alphabet):
            least = len(alphabet) + 1
            raise InputError(
                f"tokenizer.vocab_size is {vocab_size}: 256 bytes and {END_OF_TEXT} need at least {least}."
            )
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        if tokenizer.get_vocab_size() < vocab_size:
            raise InputError(
                f"tokenizer.vocab_size is {vocab_size}, but the text has merges for only "
                f"{tokenizer.get_vocab_size()} ids: lower it to that or give more text."
            )
        return cls(tokenizer.to_str(pretty=True))

    @classmethod
    def train_words(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """The most frequent words, as in Mikolov's Penn Treebank: text between white space, as it stands.

        At most `vocab_size` ids: `<unk>` for all other words (and where a text itself says so), `<eos>` for the end of
        a line, the words by falling frequency and then by spelling, and the end-of-text token. Decoding puts one blank
        between words and none at the ends of a line.
        """
        if vocab_size < 4:
            raise InputError(
                f"tokenizer.vocab_size is {vocab_size}: {UNKNOWN}, {END_OF_LINE}, {END_OF_TEXT} and a word need 4."
            )
        tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=vocab_size, show_progress=False))
        counted = tokenizer.get_vocab()
        # The end-of-text token is no word of the model: a document that spells it gets `<unk>`.
        special = {UNKNOWN, END_OF_LINE, END_OF_TEXT}
        words = [word for word in sorted(counted, key=counted.__getitem__) if word not in special]
        words = [UNKNOWN, END_OF_LINE, *words][: vocab_size - 1]
        tokenizer.model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
        tokenizer.add_special_tokens([END_OF_TEXT])
        # WordPiece puts a blank before each token but those that start with the prefix, which here none can.
        line_end = tokenizers.Regex(f"(?:^| |(?<= )){END_OF_LINE}(?: |$)")
        tokenizer.decoder = decoders.Sequence(
            [decoders.WordPiece(prefix="\n", cleanup=False), decoders.Fuse(), decoders.Replace(line_end, "\n")]
        )
        return cls(tokenizer.to_str(pretty=True))

    @classmethod
    def train_characters(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Single characters in the order of their code points, at most `vocab_size` ids; U+FFFD stands for all others."""
        return cls(character_tokenizer(texts, vocab_size, END_OF_TEXT).to_str(pretty=True))

    @classmethod
    def train_unigram(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A unigram model over pieces of bytes (Kudo 2018) with GPT-2's pre-tokenisation; any text comes back whole."""
        return cls(unigram_tokenizer(texts, vocab_size, END_OF_TEXT))

    @property
    def lossless(self) -> bool:
        """Whether every text comes back from its ids as it was."""
        return isinstance(self._tokenizer.decoder, decoders.ByteLevel) and self._tokenizer.normalizer is None

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` to this file, or into this folder."""
        write_text(Path(path) / FILE if Path(path).is_dir() else Path(path), self.content)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no end-of-text token is added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text. A whole corpus goes faster through `Encoder`."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def continuation(self, ids: Iterable[int]) -> str:
        """The text that ids add to text before them. `decode` may leave out a blank where ids begin, as SentencePiece does."""
        before = self.encode("a")
        return self.decode([*before, *ids])[len(self.decode(before)) :]

    def token_bytes(self) -> np.ndarray:
        """How many bytes of UTF-8 each id stands for, 0 for special tokens: int64 of shape (vocab_size,).

        Of words, the bytes of the word and one for the white space after it, and one for the end of a line. `<unk>`, and
        U+FFFD of characters, counts as it is spelled, so bits per byte are then those of the text with its unknown words replaced.
        """
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        counts = np.zeros(self.vocab_size, np.int64)
        if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            for token, i in vocabulary.items():
                counts[i] = len(token)  # A byte-level vocabulary spells each byte as one character.
        elif is_of_characters(self._tokenizer):
            for character, i in vocabulary.items():
                counts[i] = len(character.encode())
        elif isinstance(self._tokenizer.model, models.WordLevel):
            for word, i in vocabulary.items():
                counts[i] = 1 if word == END_OF_LINE else len(word.encode()) + 1
        else:
            raise InputError(
                "Only a byte-level or word tokenizer says how many bytes a token stands for, or one of characters: use one for bits per byte."
            )
        for i, added in self._tokenizer.get_added_tokens_decoder().items():
            counts[i] = 0 if added.special else len(added.content.encode())
        return counts

    def token_contents(self) -> list[bytes]:
        """The UTF-8 that each id adds to a text, by id: nothing for special tokens and for ids that are not in use.

        A character may be divided among several ids. Where the tokenizer is not byte-level, a word has the blank before it that
        decoding puts there after other text.
        """
        contents = [b""] * self.vocab_size
        added = self._tokenizer.get_added_tokens_decoder()
        byte_level = isinstance(self._tokenizer.decoder, decoders.ByteLevel)
        for token, i in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if byte_level:
                contents[i] = b"".join(BYTES.get(character) or character.encode() for character in token)
            elif byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
                contents[i] = bytes.fromhex(byte[1])  # Of SentencePiece, for characters that it does not know.
            elif i not in added:
                contents[i] = self.continuation([i]).encode()
        for i, token in added.items():
            contents[i] = b"" if token.special else token.content.encode()
        return contents

    @property
    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens that text can become."""
        return self._tokenizer.get_vocab(with_added_tokens=False)

    @property
    def of_characters(self) -> bool:
        """Whether each character of a text is one id."""
        return is_of_characters(self._tokenizer)

    @property
    def unknown(self) -> int | None:
        """The id that stands for all that the vocabulary lacks; None where it lacks nothing."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        return None if token is None or self.lossless else self._tokenizer.token_to_id(token)


class Encoder:
    """Encodes columns of text by `gigatoken`, or characters by a table, or else by `tokenizers`.

    A faster engine is used where it gives the same ids on a sample.
    """

    def __init__(self, tokenizer: Tokenizer, sample: list[str]):
        """`sample` is a few documents of the corpus, on which both engines have to give the same ids."""
        self.tokenizer = tokenizer
        self.notice: str | None = None
        """Why the corpus is encoded by `tokenizers`, where it is."""
        self._fast: CharacterTable | Gigatoken | None = None
        try:
            self._fast = CharacterTable(tokenizer.vocabulary) if tokenizer.of_characters else Gigatoken(tokenizer)
            sample = [*sample, f"a{END_OF_TEXT} b", ""]
            ids, lengths = self.encode(pa.array(sample, pa.string()))
            expected = tokenizer.encode_batch(sample)
            if not np.array_equal(lengths, [len(row) for row in expected]) or not np.array_equal(
                ids, np.concatenate(expected)
            ):
                raise ValueError("its ids differ on a sample of the corpus")
        except Exception as error:  # Whatever ails the faster engine, the slower one is right.
            engine = self.engine
            self._fast = None
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            faster = "gigatoken" if engine == "tokenizers" else engine
            self.notice = f"tokenizers encodes, slower than {faster}, which cannot be used here: {reason}"

    @property
    def engine(self) -> str:
        return "tokenizers" if self._fast is None else self._fast.name

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another, and the number of ids of each."""
        if self._fast is not None:
            return self._fast.encode(texts)
        rows = self.tokenizer.encode_batch(texts.to_pylist())
        lengths = np.array([len(row) for row in rows], np.int64)
        return np.concatenate([np.zeros(0, np.int64), *rows]), lengths


class Gigatoken:
    """`gigatoken` with the vocabulary of a tokenizer; fails in its own way where it is missing or does not know the kind."""

    name = "gigatoken"

    def __init__(self, tokenizer: Tokenizer):
        import gigatoken

        # A token that it does not know cannot be read into a document.
        content = with_member(
            tokenizer.content, "added_tokens", lambda tokens: [token for token in tokens if not token["special"]]
        )
        self._engine = gigatoken.Tokenizer.from_json(content)

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another, and the number of ids of each."""
        import awkward

        # It takes 64-bit offsets only.
        rows = self._engine.encode_batch(awkward.from_arrow(texts.cast(pa.large_string())))
        lengths = awkward.to_numpy(awkward.num(rows)).astype(np.int64)
        return awkward.to_numpy(awkward.flatten(rows)), lengths
