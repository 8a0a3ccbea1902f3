"""Where documents come from: local text, JSON lines, Parquet, the `datasets` hub.

`python_sources` has Python itself, `pair_sources` texts with a target. A source is its settings. It says cheaply what
it would read, so that an unchanged corpus is not read again, and it yields (id, text). An id depends on its document
alone, never on the documents beside it: the split is made by id.
"""

import codecs
import glob
import gzip
import hashlib
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files import InputError

CHUNK_BYTES = 2**20
Documents = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Source(ABC):
    """Base of all sources; name one of its subclasses as `class_path`."""

    limit: int | None = None
    """Take at most this many documents."""
    pairs: ClassVar[bool] = False
    """Whether documents are (id, text, target) instead of (id, text)."""
    counts: ClassVar[tuple[str, ...]] = ()
    """Which numbers in `origin` the terminal shows."""

    split: Literal["train", "validation", "test"] | None = None
    """Put all documents into this split instead of dividing them by the hash of their id."""

    def settings(self) -> dict[str, Any]:
        """All settings that change which documents come out."""
        return {name: value for name, value in asdict(self).items() if name != "split"}

    @abstractmethod
    def inputs(self) -> Any:
        """What would be read, as JSON that changes when it changes: names, sizes and times of change, without reading.

        Raises InputError where there is nothing to read.
        """

    @abstractmethod
    def documents(self, workers: int, origin: dict[str, Any]) -> Iterator[tuple[str, ...]]:
        """Yield (id, text), or (id, text, target), in an order that depends on the input alone.

        `origin` takes facts about what was read.
        """


def content_id(name: str, text: str) -> str:
    """An id for a piece of something larger, which stays when other pieces are added or removed around it."""
    return f"{name}#{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """Local files, found by patterns."""

    files: list[str]
    """Paths or patterns; `**` goes through folders. A pattern has to match something."""

    def matches(self) -> list[tuple[Path, str]]:
        """Each file once, with its name: the path below the part of the pattern that has no wildcard."""
        found: dict[Path, str] = {}
        for pattern in self.files:
            literal = Path(pattern).is_file()
            paths = [pattern] if literal else sorted(glob.glob(pattern, recursive=True))
            paths = [Path(path) for path in paths if Path(path).is_file()]
            if not paths:
                raise InputError(f"No file matches {pattern!r} (from {Path.cwd()}): correct the entry in `files`.")
            root = Path(pattern).parent
            while glob.has_magic(str(root)) and not literal:
                root = root.parent
            found |= {path: path.relative_to(root).as_posix() for path in paths if path not in found}
        if not found:
            raise InputError("`files` is empty: name at least one path or pattern.")
        return list(found.items())

    def inputs(self) -> Any:
        return [listing(path) for path, _ in self.matches()]


def listing(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


@dataclass(frozen=True, kw_only=True)
class EncodedFileSource(FileSource):
    """Local files of text in some encoding, plain or gzipped (`.gz`)."""

    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that the encoding does not allow: stop, put U+FFFD, or leave them out."""

    def chunks(self, path: Path) -> Iterator[str]:
        """The text of a file in pieces of about a megabyte."""
        try:
            decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        except LookupError:
            raise InputError(
                f"There is no encoding {self.encoding!r}: use a name that Python knows, such as latin-1."
            ) from None
        consumed = 0
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            while True:
                pending = len(decoder.getstate()[0])
                try:
                    data = stream.read(CHUNK_BYTES)
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path} is not {self.encoding}: byte {consumed - pending + error.start} is "
                        f"0x{error.object[error.start]:02x} ({error.reason}); set the source's "
                        "`encoding` (latin-1, say) or `errors: replace`."
                    ) from None
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    raise InputError(f"{path} is not a whole gzip file ({error}): fetch it again.") from None
                yield text.removeprefix("\ufeff") if consumed == 0 else text
                if not data:
                    return
                consumed += len(data)

    def lines(self, path: Path) -> Iterator[str]:
        """The lines of a file without their ends, a last empty one included."""
        rest: list[str] = []
        for chunk in self.chunks(path):
            first, *others = chunk.split("\n")
            rest.append(first)
            if others:
                yield "".join(rest)
                yield from others[:-1]
                rest = [others[-1]]
        yield "".join(rest)


@dataclass(frozen=True, kw_only=True)
class Text(EncodedFileSource):
    """Plain text: a document is a file, or what stands between two separators."""

    separator: str | None = None
    """What stands between documents: "\\n\\n", say, or "<|endoftext|>". Unset: a file is a document."""
    document_characters: int = 1_000_000
    """A longer document is cut at the last line end before this length."""

    def __post_init__(self) -> None:
        if self.separator == "" or self.document_characters < 1:
            raise InputError(
                "`separator` must not be empty and `document_characters` must be positive: leave out what is unset."
            )

    def documents(self, workers: int, origin: dict[str, Any]) -> Documents:
        for path, name in self.matches():
            pieces = self._pieces(path)
            head = list(islice(pieces, 2))
            whole = self.separator is None and len(head) < 2
            for piece in chain(head, pieces):
                yield name if whole else content_id(name, piece), piece

    def _pieces(self, path: Path) -> Iterator[str]:
        rest = ""
        for chunk in self.chunks(path):
            rest += chunk
            if self.separator is not None:
                *whole, rest = rest.split(self.separator)
                for piece in whole:
                    yield from cut(piece, self.document_characters)
            *whole, rest = cut(rest, self.document_characters)
            yield from whole
        if rest:
            yield rest


def cut(text: str, limit: int) -> list[str]:
    """Pieces of at most `limit` characters that end at a line's end where there is one."""
    pieces, start = [], 0
    while len(text) - start > limit:
        stop = text.rfind("\n", start, start + limit) + 1 or start + limit
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


@dataclass(frozen=True, kw_only=True)
class Jsonl(EncodedFileSource):
    """JSON lines: one object a line, the text in one of its fields."""

    text_column: str = "text"
    """The field that holds the text."""
    id_column: str | None = None
    """The field that holds a stable id. Unset: the id is made from the text."""

    def documents(self, workers: int, origin: dict[str, Any]) -> Documents:
        for path, name in self.matches():
            for number, line in enumerate(self.lines(path), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path} line {number} is not JSON ({error}): mend or remove the line.") from None
                if not isinstance(row, dict):
                    raise InputError(f"{path} line {number} is not a JSON object: each line has to be one.")
                yield pick(row, self.text_column, self.id_column, name, f"{path} line {number}")


def pick(row: dict[str, Any], text_column: str, id_column: str | None, name: str, place: str) -> tuple[str, str]:
    """The id and text of a row. A null text counts as empty."""
    for column in (text_column, id_column):
        if column is not None and column not in row:
            raise InputError(
                f"{place} has no field {column!r}, only {', '.join(row)}: set `text_column` or `id_column`."
            )
    text = row[text_column]
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InputError(
            f"{place} holds {type(text).__name__} in {text_column!r}, not text: set `text_column` to another field."
        )
    return (content_id(name, text) if id_column is None else str(row[id_column])), text


@dataclass(frozen=True, kw_only=True)
class Parquet(FileSource):
    """Parquet files with a column of text."""

    text_column: str = "text"
    """The column that holds the text."""
    id_column: str | None = None
    """The column that holds a stable id. Unset: the id is made from the text."""

    def documents(self, workers: int, origin: dict[str, Any]) -> Documents:
        columns = [column for column in (self.text_column, self.id_column) if column]
        for path, name in self.matches():
            try:
                parquet = pq.ParquetFile(path)
            except pa.ArrowInvalid as error:
                raise InputError(f"{path} is not a Parquet file ({error}): correct the entry in `files`.") from None
            with parquet:
                missing = [column for column in columns if column not in parquet.schema_arrow.names]
                if missing:
                    have = ", ".join(parquet.schema_arrow.names)
                    raise InputError(
                        f"{path} has no column {missing[0]!r}, only {have}: set `text_column` or `id_column`."
                    )
                for batch in parquet.iter_batches(batch_size=1024, columns=columns):
                    for row in batch.to_pylist():
                        yield pick(row, self.text_column, self.id_column, name, str(path))


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A data set of the Hugging Face hub, or a local folder that `datasets` can load; streamed, never downloaded."""

    name: str
    """Name on the hub ("Salesforce/wikitext"), a loader ("parquet", with data_dir) or a local folder."""
    subset: str | None = None
    """Configuration of the data set ("wikitext-2-raw-v1")."""
    hub_split: str = "train"
    """Which of its splits to read."""
    revision: str | None = None
    """Commit or tag: name one for a corpus that can be repeated. The hub is not asked for changes."""
    data_dir: str | None = None
    """Folder inside the data set."""
    text_column: str = "text"
    """The column that holds the text."""
    id_column: str | None = None
    """The column that holds a stable id. Unset: the id is made from the text."""

    def inputs(self) -> Any:
        folders = [Path(folder) for folder in (self.name, self.data_dir) if folder and Path(folder).is_dir()]
        return [listing(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]

    def documents(self, workers: int, origin: dict[str, Any]) -> Documents:
        import datasets

        try:
            rows = datasets.load_dataset(
                self.name,
                self.subset,
                split=self.hub_split,
                revision=self.revision,
                data_dir=self.data_dir,
                streaming=True,
            )
            for row in rows:
                yield pick(dict(row), self.text_column, self.id_column, self.name, f"Data set {self.name}")
        except InputError:
            raise
        except Exception as error:  # `datasets` raises a dozen kinds, its own and those of its HTTP client.
            reason = (str(error) or type(error).__name__).strip().partition("\n")[0].rstrip(".")
            raise InputError(
                f"Data set {self.name!r} cannot be read ({reason}): check `name`, `subset` and `hub_split` "
                "and that the hub can be reached, or use a local copy as a Parquet or Jsonl source."
            ) from None
