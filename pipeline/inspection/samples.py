"""The text on which a trained model is looked at: pieces of its own validation split, or a paragraph that is always there."""

import numpy as np

from data_prep.files import InputError
from data_prep.shards import Manifest, TokenReader
from pipeline.checkpoint import LoadedRun

# B samples, T time

CANDIDATES = 8
"""Places that are looked at for each sample wanted, since a piece that crosses from one document to the next is taken last."""

PARAGRAPH = """\
A reader of a long letter does not keep every word of it. What stays is a sense of who writes, of what has happened so far, and
of what is still to be told; the rest is let go, and looked up again when it is needed. The letter began in a small town by the
sea, where the harbour had frozen for the first time in forty years. The ships lay still, the market was closed, and the people
walked out on the ice to see their houses from where they had never seen them. A boy had taken his father's lantern without
asking. He went further out than the others, and when the fog came in from the open water he could no longer tell which of the
lights belonged to the town. So he put the lantern down on the ice, walked as far as he could still see it, and turned; and in
this way, from one circle of light to the next, he found the first of the boats, then the wall of the harbour, and at last the
house, where the letter was already being written in which his aunt was told that he had been lost.
"""


def samples(loaded: LoadedRun, length: int, count: int) -> tuple[np.ndarray, str]:
    """Pieces of text as tokens_BT (int64) of `length` tokens, at most `count` of them, and the words for what they are of.

    Raises:
        InputError: no text at hand is so long.
    """
    reader = validation_split(loaded)
    if reader is not None and len(reader) >= length:
        return pieces(reader, length, count, loaded.tokenizer.end_of_text), "validation text"
    tokens = np.array([loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(PARAGRAPH)])
    if len(tokens) < length:
        raise InputError(
            f"{loaded.directory} has no validation split of {length} tokens where its run.json says, and the built-in paragraph "
            f"has {len(tokens)}: give --distance {len(tokens) - 2} or less, or put the shards back"
        )
    starts = np.unique(np.linspace(0, len(tokens) - length, count).astype(int))
    return np.stack([tokens[start : start + length] for start in starts]), "the built-in paragraph"


def validation_split(loaded: LoadedRun) -> TokenReader | None:
    """The run's validation tokens, if its shards are still where it found them and of the same tokenizer."""
    try:
        manifest = Manifest.load(loaded.record["data"]["path"])
        return manifest.open("validation") if manifest.tokenizer == loaded.tokenizer.fingerprint else None
    except (InputError, KeyError):
        return None


def pieces(reader: TokenReader, length: int, count: int, end_of_text: int) -> np.ndarray:
    """Evenly spread over the split; those within one document first, since a new document owes nothing to the one before."""
    starts = np.unique(np.linspace(0, len(reader) - length, CANDIDATES * count).astype(int))
    found = reader.gather(starts, length)
    whole = found[~(found == end_of_text).any(axis=1)]
    chosen = whole if len(whole) >= count else found
    return chosen[np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)]
