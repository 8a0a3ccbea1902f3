"""Gettext's `.po` files, read message by message."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import InputError

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
ESCAPE = re.compile(r"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)")
LINE = re.compile(r'(?:(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s*)?"((?:[^"\\]|\\.)*)"\s*')


@dataclass
class Message:
    """A message and its translations, as they are in the catalogue."""

    fuzzy: bool = False
    parts: dict[str, list[str]] = field(default_factory=dict)
    """What stands after each keyword (`msgid`, `msgstr[1]`), in pieces."""

    def pairs(self) -> list[tuple[str, str]]:
        """The message and its translation, which is empty where there is none; of plural forms two pairs."""
        texts = {keyword: unescaped("".join(pieces)) for keyword, pieces in self.parts.items()}
        if "msgid_plural" not in texts:
            return [(texts["msgid"], texts.get("msgstr", ""))]
        forms = [text for keyword, text in texts.items() if keyword.startswith("msgstr[")] or [""]
        singular = [(texts["msgid"], forms[0])] if len(forms) > 1 else []
        return [*singular, (texts["msgid_plural"], forms[-1])]


def catalogue(lines: Iterator[str], path: Path) -> Iterator[Message]:
    """The messages of a `.po` file but its header and obsolete ones. InputError names the first line that is wrong."""
    message, keyword = Message(), ""
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line.startswith("#~") or not line:
            continue
        starts = line.startswith(("#", "msgctxt")) or re.match(r"msgid\s*\"", line) is not None
        if starts and any(part.startswith("msgstr") for part in message.parts):
            yield from whole(message)
            message, keyword = Message(), ""
        if line.startswith("#"):
            flags = line[2:].split(",") if line.startswith("#,") else []
            message.fuzzy |= "fuzzy" in map(str.strip, flags)
            continue
        match = LINE.fullmatch(line)
        keyword = (match[1] or keyword) if match else ""
        if match is None or not keyword or (match[1] and match[1] in message.parts):
            raise InputError(f"{path} line {number} is not gettext ({line[:40]!r}): mend it (`msgfmt --check` helps).")
        if keyword.startswith("msgstr") and "msgid" not in message.parts:
            raise InputError(f"{path} line {number} translates no msgid: mend it (`msgfmt --check` helps).")
        message.parts.setdefault(keyword, []).append(match[2])
    yield from whole(message)


def whole(message: Message) -> Iterator[Message]:
    """The message, unless it is the header or only comments."""
    if any(message.parts.get("msgid", ())) or "msgid_plural" in message.parts:
        yield message


def unescaped(text: str) -> str:
    return ESCAPE.sub(lambda match: unescape(match[1]), text)


def unescape(code: str) -> str:
    if code[0] in "01234567":
        return chr(int(code, 8))
    if code[0] == "x" and len(code) > 1:
        return chr(int(code[1:], 16))
    return ESCAPES.get(code, code)
