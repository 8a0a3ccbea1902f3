"""A unigram language model over pieces of bytes (Kudo 2018), trained to the same bytes every time."""

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.files import InputError

STEP = 1e-4


def unigram_tokenizer(texts: Iterable[str], vocab_size: int, end_of_text: str) -> str:
    """The `tokenizer.json` of a unigram model with all 256 bytes, so that any text comes back whole.

    Raises:
        InputError: a `vocab_size` without room for the bytes, or more than the text has pieces for.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet):
        raise InputError(
            f"tokenizer.vocab_size is {vocab_size}: 256 bytes and {end_of_text} need at least {len(alphabet) + 1}."
        )
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[end_of_text], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise InputError(
            f"tokenizer.vocab_size is {vocab_size}, but the text has pieces for only {tokenizer.get_vocab_size()} ids: "
            "lower it to that or give more text."
        )
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] = in_order(content["model"]["vocab"])
    return json.dumps(content, ensure_ascii=False, indent=2)


def in_order(vocabulary: list[list]) -> list[list]:
    """A trained vocabulary, end-of-text first, in an order and with scores that do not depend on how a hash table was filled.

    The trainer appends the bytes that it has not learned in such an order, with scores falling below all others; here all bytes
    rarer than every longer piece stand at the end in their own order. Sums in another order differ in their last digits.
    """
    end_of_text, *pieces = vocabulary
    least = min((score for piece, score in pieces if len(piece) > 1), default=0.0)
    learned = [[piece, round(score, 6)] for piece, score in pieces if len(piece) > 1 or score >= least]
    known = {piece for piece, _ in learned}
    rest = sorted(piece for piece, _ in pieces if piece not in known)
    learned.sort(key=lambda entry: (-entry[1], entry[0]))
    return [end_of_text, *learned, *([piece, round(least - STEP * k, 6)] for k, piece in enumerate(rest, 1))]
