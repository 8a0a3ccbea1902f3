"""Tokenizers of other projects as our `tokenizer.json`: end-of-text gets the name that we look for, llama2.c files are converted.

In our shards and prompts one token stands between documents, `<|endoftext|>`. Other models know it under another name, so it is
renamed; ids and text stay as they are.
"""

import struct
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from data_prep.files import InputError
from data_prep.tokenizer import END_OF_TEXT, FILE, Tokenizer
from data_prep.tokenizer_files import renamed

SPACE = "▁"
"""How SentencePiece writes a space inside a token."""
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
"""The first three tokens of LLaMA's vocabularies."""


def load_tokenizer(path: Path, boundary: str | int | None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, or of a llama2.c `.bin`, with a token `<|endoftext|>`.

    Args:
        path: the file, or a folder with a `tokenizer.json`.
        boundary: the token between documents, by its text, or by its id: an id is only used where no token has that name yet.

    Raises:
        InputError: there is no such token, or the file cannot be read.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"There is no tokenizer at {path}: give one with --tokenizer")
    content = path.read_bytes()
    content = from_llama2c(content, path) if path.suffix == ".bin" else content.decode(errors="replace")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads: {error}") from None
    named = tokenizer.token_to_id(END_OF_TEXT) is not None
    if boundary == END_OF_TEXT or (named and not isinstance(boundary, str)):
        return Tokenizer(content)
    if named:
        raise InputError(
            f"{path} has a token {END_OF_TEXT} already, so {boundary!r} cannot be it: leave --end_of_text away"
        )
    # Only these are never made from text, so renaming one changes the ids of no document.
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    token = added.get(boundary) if isinstance(boundary, int) else boundary
    if token is None or token not in added.values():
        raise InputError(
            f"{path} has no added token {boundary!r} to stand between documents: name one of "
            f"{', '.join(added.values()) or 'another tokenizer'} with --end_of_text"
        )
    return Tokenizer(renamed(content, token, END_OF_TEXT))


def from_llama2c(content: bytes, path: Path) -> str:
    """A llama2.c tokenizer (its tokenizer.py, `export`) as a `tokenizer.json`.

    The file holds the scores and the pieces of a SentencePiece BPE model: <unk>, <s>, </s>, 256 bytes, then text. SentencePiece
    joins the neighbours whose union has the highest score; so every pair that makes a piece is a merge, ranked by that score.
    """
    scores, pieces = [], []
    position = 4  # after the length of the longest piece
    try:
        while position < len(content):
            score, length = struct.unpack_from("<fi", content, position)
            piece = struct.unpack_from(f"{length}s", content, position + 8)[0].decode()
            position += 8 + length
            scores.append(score)
            pieces.append(piece.replace(" ", SPACE))
    except (struct.error, UnicodeDecodeError):
        raise InputError(f"{path} is not a whole llama2.c tokenizer: fetch it again, or give a {FILE}") from None
    text_from = 3 + 256
    if pieces[3:text_from] != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise InputError(f"{path} is not a llama2.c tokenizer with 256 single bytes from id 3 on: give a {FILE}")
    # The export spells out the special ones as "\n<s>\n", which the text of a document may hold.
    pieces[:3] = UNKNOWN, BEGIN, END
    ids = {piece: i for i, piece in enumerate(pieces)}
    pairs = [
        (-scores[i], ids[piece[:cut]], ids[piece[cut:]])
        for i, piece in enumerate(pieces[text_from:], text_from)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [(pieces[left], pieces[right]) for _, left, right in sorted(pairs)]
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (UNKNOWN, BEGIN, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, ids[BEGIN])]
    )
    return tokenizer.to_str()
