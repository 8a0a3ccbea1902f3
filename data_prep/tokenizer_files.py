"""Tokenizers in files of other projects: GPT-2's pair of a vocabulary and merges, and `tokenizer.json` with another end of text."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from data_prep.files import InputError, read_json

FILE = "tokenizer.json"
PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""What GPT-2 called its vocabulary and merges, and what they have been called since."""
BOUNDARIES = ("<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>")
"""What other projects call the token between documents, in the order in which they are looked for."""


def read_tokenizer(path: Path, end_of_text: str) -> str:
    """A `tokenizer.json` as text, from the file, its folder, or GPT-2's two files, given as their folder or either of them.

    Raises:
        InputError: there is none, or its content cannot be read.
    """
    folder, names = (path, [FILE]) if path.is_dir() else (path.parent, [path.name])
    for vocabulary, merges in PAIRS:
        wanted = path.name in (vocabulary, merges) or (path.is_dir() and not (path / FILE).is_file())
        if wanted and (folder / vocabulary).is_file() and (folder / merges).is_file():
            return from_pair(folder / vocabulary, folder / merges, end_of_text)
        if path.is_file() and path.name in (vocabulary, merges):
            raise InputError(f"{path} is one of two files, {vocabulary} and {merges}: put the other beside it.")
    file = folder / names[0]
    if not file.is_file():
        raise InputError(
            f"There is no tokenizer at {file}: give a {FILE}, GPT-2's {' and '.join(PAIRS[0])}, or the folder that holds them."
        )
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} cannot be used. It is not UTF-8 ({error.reason}): give a {FILE}.") from None


def from_pair(vocabulary: Path, merges: Path, end_of_text: str) -> str:
    """GPT-2's byte-level BPE from its two files, with their ids."""
    ids = read_json(vocabulary)
    if not isinstance(ids, dict) or not all(isinstance(i, int) for i in ids.values()):
        raise InputError(f"{vocabulary} is not a vocabulary: it has to be a JSON object of tokens and their ids.")
    lines = merges.read_text(encoding="utf-8").split("\n")
    rows = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if bad := next((row for row in rows if len(row) != 2 or "".join(row) not in ids), None):
        raise InputError(
            f"{merges} has the line {' '.join(bad)!r}, which does not join two tokens to one of {vocabulary}: the two files "
            "have to be of one tokenizer."
        )
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, [(row[0], row[1]) for row in rows]))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(
            f"{merges} does not belong to {vocabulary} ({error}): give the two of one tokenizer."
        ) from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end_of_text in ids:
        tokenizer.add_special_tokens([end_of_text])
    return tokenizer.to_str(pretty=True)


def with_end_of_text(content: str, token: str | None, end_of_text: str, path: str) -> tuple[str, str | None]:
    """A `tokenizer.json` in which the token between documents is called `end_of_text`, and a notice where it was renamed.

    Args:
        token: what it is called so far; None to take `end_of_text` where there is one, else the first of BOUNDARIES.

    Raises:
        InputError: there is no such token, or none that could be it.
    """
    try:
        parsed = json.loads(content)
        added = [entry["content"] for entry in parsed["added_tokens"]]
        vocabulary = parsed["model"]["vocab"]
        known = vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    except (ValueError, KeyError, TypeError):
        return content, None  # What it is then is for the one who loads it to say.
    if token in (None, end_of_text) and (end_of_text in added or end_of_text in known):
        return content, None
    have = ", ".join(added[:20]) or "none"
    if token is not None and (token not in added or end_of_text in added or end_of_text in known):
        raise InputError(
            f"tokenizer.end_of_text is {token!r}, but the added tokens of {path} are {have}: name one of them"
            f"{f', or leave it away for {end_of_text}' if end_of_text in added else ''}."
        )
    # Only added tokens are never made from text, so that renaming one changes the ids of no document.
    found = token or next((name for name in BOUNDARIES if name in added), None)
    if found is None:
        raise InputError(
            f"{path} has no {end_of_text!r} token: documents need one between them, so name one of its added tokens "
            f"({have}) in tokenizer.end_of_text."
        )
    return renamed(
        content, found, end_of_text
    ), f"{found!r} of {path} stands between documents; here it is {end_of_text}"


def renamed(content: str, token: str, name: str) -> str:
    """A `tokenizer.json` in which an added token has another name wherever it occurs, and is special."""

    def rename(value: Any) -> Any:
        if isinstance(value, dict):
            return {name if key == token else key: rename(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item) for item in value]
        return name if value == token else value

    parsed = rename(json.loads(content))
    for entry in parsed["added_tokens"]:
        entry["special"] |= entry["content"] == name
    return json.dumps(parsed, ensure_ascii=False, indent=2)


DECODER = json.JSONDecoder()
BLANK = re.compile(r"[ \t\n\r]*")


def with_member(content: str, name: str, change: Callable[[Any], Any]) -> str:
    """A JSON object with another value for one of its members; what stands after it, most of a tokenizer, is not parsed.

    Raises:
        ValueError: it is no such object.
    """

    def after(place: int, mark: str) -> int:
        place = blank(place)
        if content[place : place + 1] != mark:
            raise ValueError(f"character {place} is not {mark!r}")
        return blank(place + 1)

    def blank(place: int) -> int:
        found = BLANK.match(content, place)
        return found.end() if found else place

    place = after(0, "{")
    while True:
        key, place = DECODER.raw_decode(content, place)
        start = after(place, ":")
        value, place = DECODER.raw_decode(content, start)
        if key == name:
            return content[:start] + json.dumps(change(value)) + content[place:]
        place = after(place, ",")
