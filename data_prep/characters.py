"""A tokenizer of single characters: its vocabulary from text, and its ids from columns of text by one look-up."""

import sys
from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data_prep.files import InputError
from data_prep.ngrams import code_points

UNKNOWN_CHARACTER = "\ufffd"
BATCH_TEXTS = 1024


def character_tokenizer(texts: Iterable[str], vocab_size: int, end_of_text: str) -> tokenizers.Tokenizer:
    """The characters of the texts in the order of their code points, U+FFFD for all others, and end-of-text.

    So ids are those of nanoGPT's character-level data. With more characters than `vocab_size` allows, the most frequent ones.

    Raises:
        InputError: a `vocab_size` without room for a character.
    """
    if vocab_size < 3:
        raise InputError(
            f"tokenizer.vocab_size is {vocab_size}: U+FFFD for unknown characters, {end_of_text} and a character need 3."
        )
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    rest = iter(texts)
    while batch := list(islice(rest, BATCH_TEXTS)):
        codes, found = np.unique(code_points("".join(batch)), return_counts=True)
        counts[codes] += found
    counts[ord(UNKNOWN_CHARACTER)] = 0
    kept = np.argsort(-counts, kind="stable")[: min(vocab_size - 2, np.count_nonzero(counts))]
    vocabulary = [*map(chr, sorted(kept.tolist())), UNKNOWN_CHARACTER]
    ids = {character: i for i, character in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN_CHARACTER))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([end_of_text])
    return tokenizer


def is_of_characters(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer is one that `character_tokenizer` makes."""
    return (
        isinstance(tokenizer.model, models.WordLevel)
        and tokenizer.model.unk_token == UNKNOWN_CHARACTER
        and isinstance(tokenizer.decoder, decoders.Fuse)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Split)
        and tokenizer.normalizer is None
    )


class CharacterTable:
    """The id of every code point, 4 MB of them, for whole columns at once.

    Args:
        vocabulary: id of each character, U+FFFD among them.
    """

    name = "a table of characters"

    def __init__(self, vocabulary: Mapping[str, int]):
        self.ids = np.full(sys.maxunicode + 1, vocabulary[UNKNOWN_CHARACTER], np.int32)
        for character, i in vocabulary.items():
            self.ids[ord(character)] = i

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another, and the number of ids of each."""
        lengths = pc.call_function("utf8_length", [texts]).to_numpy(zero_copy_only=False).astype(np.int64)
        together = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
        text = pc.call_function("binary_join", [together, pa.scalar("")])[0].as_py()
        return self.ids[code_points(text)], lengths
