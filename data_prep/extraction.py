"""The text of web pages: what a page says, without menus, forms and advertisements, by trafilatura (Barbaresi 2021)."""

import codecs
import logging
import re
from dataclasses import dataclass
from typing import Literal

CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
# Browsers take these names, the most frequent on the web, for its superset.
LATIN = {"iso8859-1", "ascii"}


@dataclass(frozen=True)
class Extractor:
    """How pages become text."""

    favour: Literal["balanced", "precision", "recall"]
    tables: bool

    def text(self, content: bytes, charset: str | None = None) -> str:
        """The main text of a page, empty where none is found; `charset` is what its server said."""
        import trafilatura

        for name in ("trafilatura", "htmldate", "justext"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # A page without text is counted, not complained of.
        page = decoded(content, charset)
        if not page.strip():
            return ""
        text = trafilatura.extract(
            page,
            favor_precision=self.favour == "precision",
            favor_recall=self.favour == "recall",
            include_comments=False,
            include_tables=self.tables,
        )
        return text or ""


def decoded(content: bytes, charset: str | None) -> str:
    """A page as text: UTF-8 where it is that, else as the server or the page itself says, else Windows-1252."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    declared = CHARSET.search(content[:4096])
    for name in (charset, declared[1].decode("ascii", "ignore") if declared else None):
        try:
            codec = codecs.lookup(name).name if name else "utf-8"
        except LookupError:
            continue
        if codec != "utf-8":
            return content.decode("cp1252" if codec in LATIN else codec, "replace")
    # UTF-8 with a few bad bytes is still read as that.
    text = content.decode("utf-8", "replace")
    return (
        text
        if text.count("\ufffd") * 20 < sum(byte >= 128 for byte in content)
        else content.decode("cp1252", "replace")
    )
