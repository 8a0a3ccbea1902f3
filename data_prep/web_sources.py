"""Pages of the web: HTML files, and the WARC files in which crawlers keep what servers answered."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_prep.extraction import Extractor
from data_prep.files import InputError
from data_prep.parallel import Piece, Task
from data_prep.reading import open_bytes
from data_prep.rows import batches_of
from data_prep.sources import Documents, FileSource, Range

PAGE_TASK_BYTES = 2**20
HTML_TYPES = {"text/html", "application/xhtml+xml"}
TEXT_TYPES = {"text/plain"}
WARC_START = b"WARC/"


@dataclass(frozen=True, kw_only=True)
class PageSource(FileSource):
    """Base of sources that take the text out of web pages."""

    favour: Literal["balanced", "precision", "recall"] = "balanced"
    """Take less of a page that may not be its text, or more."""
    tables: bool = True
    """Keep the text of tables."""
    page_bytes: int = 5_000_000
    """Leave out and count larger pages."""

    def inputs(self) -> Any:
        # Another version finds other text.
        return {"files": super().inputs(), "trafilatura": importlib.metadata.version("trafilatura")}

    @property
    def extractor(self) -> Extractor:
        return Extractor(self.favour, self.tables)


@dataclass(frozen=True, kw_only=True)
class Html(PageSource):
    """HTML files (also compressed), each a document named by its path below the pattern."""

    counts = ("too_large", "without_text")

    def rows(self, path: Path, name: str, counts: dict[str, int]) -> Documents:
        with open_bytes(path) as stream:
            content = stream.read(self.page_bytes + 1)
        if len(content) > self.page_bytes:
            counts["too_large"] += 1
        elif text := self.extractor.text(content):
            yield name, text
        else:
            counts["without_text"] += 1


class Rest:
    """A stream from which the start has been read already, whole again."""

    def __init__(self, start: bytes, stream: Any):
        self._start, self._stream = start, stream

    def read(self, size: int) -> bytes:
        start, self._start = self._start[:size], self._start[size:]
        return start or self._stream.read(size)


@dataclass(frozen=True)
class Page:
    """What a server answered: an HTML page or, of a WET file, text that was taken out of one."""

    url: str
    content: bytes
    charset: str | None
    html: bool


@dataclass(frozen=True, kw_only=True)
class Warc(PageSource):
    """WARC files (`.warc`, `.warc.gz`, `.warc.zst`): each HTML page that a server sent is a document, its URL the id.

    Of WET files, the text is taken as it is. All pages with one URL are in the same split.
    """

    counts = ("responses", "not_ok", "not_html", "too_large", "without_text")

    def tasks(self, ranges: Sequence[Range]) -> Iterator[Task]:
        for path in (each.path for each in ranges):
            counts = dict.fromkeys(self.counts, 0)
            pages: list[Page] = []
            size = 0
            for page in self._pages(path, counts):
                pages.append(page)
                size += len(page.content)
                if size >= PAGE_TASK_BYTES:
                    yield Task(partial(read_pages, self.extractor, pages, counts.copy()))
                    counts |= dict.fromkeys(counts, 0)
                    pages, size = [], 0
            yield Task(partial(read_pages, self.extractor, pages, counts))

    def _pages(self, path: Path, counts: dict[str, int]) -> Iterator[Page]:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed

        try:
            with open_bytes(path) as stream:
                start = stream.read(len(WARC_START))
                if start not in (WARC_START, b""):  # warcio takes anything for a record.
                    raise InputError(f"{path} is not a WARC file, it starts with {start!r}: correct `files`.")
                for record in ArchiveIterator(Rest(start, stream)):
                    if record.rec_type in ("response", "conversion"):
                        counts["responses"] += 1
                        page = self._page(record, counts)
                        if page is not None:
                            yield page
                    while record.raw_stream.read(2**16):
                        pass
                    if record.raw_stream.limit > 0:
                        raise InputError(f"{path} is not a whole WARC file, a record is cut off: fetch it again.")
        except ArchiveLoadFailed as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"{path} is not a whole WARC file ({reason}): fetch it again.") from None

    def _page(self, record: Any, counts: dict[str, int]) -> Page | None:
        url = record.rec_headers.get_header("WARC-Target-URI") or ""
        headers = record.http_headers
        if headers is not None and not headers.get_statuscode().startswith("2"):
            counts["not_ok"] += 1
            return None
        described = (headers or record.rec_headers).get_header("Content-Type") or ""
        kind, *parameters = (part.strip() for part in described.split(";"))
        extracted = record.rec_type == "conversion" and kind.lower() in TEXT_TYPES
        if not extracted and kind.lower() not in HTML_TYPES:
            counts["not_html"] += 1
            return None
        content = record.content_stream().read(self.page_bytes + 1)
        if len(content) > self.page_bytes:
            counts["too_large"] += 1
            return None
        charsets = [part[len("charset=") :].strip("\"' ") for part in parameters if part.lower().startswith("charset=")]
        charset = next(filter(None, charsets), None)
        return Page(url.strip("<>"), content, charset, not extracted)


def read_pages(extractor: Extractor, pages: list[Page], counts: dict[str, int]) -> Iterator[Piece]:
    """The text of pages; `counts` is what was counted while they were read, to which those without text are added."""
    rows = []
    without_text = 0
    for page in pages:
        text = extractor.text(page.content, page.charset) if page.html else page.content.decode("utf-8", "replace")
        if text.strip():
            rows.append((page.url, text))
        else:
            without_text += 1
    yield Piece(counts=counts | {"without_text": without_text})
    yield from map(Piece, batches_of(rows))
