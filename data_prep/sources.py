"""Where documents come from: local text, JSON lines, Parquet, the `datasets` hub.

`table_sources` has CSV, `web_sources` pages, `pair_sources` texts with a target, `python_sources` Python itself. A
source is its settings. It says cheaply what it would read, so that an unchanged corpus is not read again, and it gives
rows of (id, text), as columns of a batch. An id depends on its document alone, never on the documents beside it: the
split is made by id.
"""

import codecs
import glob
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from data_prep.columns import group_bytes, open_parquet, read_json_lines, read_row_group
from data_prep.files import InputError
from data_prep.parallel import Piece, Task, in_order
from data_prep.reading import (
    COMPRESSIONS,
    Block,
    blocks_of,
    line_blocks,
    not_in_encoding,
    open_bytes,
)
from data_prep.rows import batches_of, content_id, pick

CHUNK_BYTES = 2**20
TASK_BYTES = 2**22
# What a small compressed file holds still fits in memory.
COMPRESSED_TASK_BYTES = 2**18
ROW_GROUP_BYTES = 2**26
# A part of a source: a sixteenth of it, between these.
LEAST_PART_BYTES, PART_BYTES = 2**22, 2**26
PARTS = 16
# What is compressed gives about so many times its bytes.
EXPANSION = 4
Documents = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Range:
    """A file, or some of it: of lines bytes, of Parquet row groups."""

    path: Path
    name: str
    start: int = 0
    stop: int | None = None

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.stop is None

    @property
    def label(self) -> str:
        return str(self.path) if self.whole else f"{self.path} [{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Part:
    """Some of what a source reads, which can be read by itself; without `ranges` all of it."""

    source: "Source"
    ranges: tuple[Range, ...] | None = None
    bytes: int = 0

    @property
    def label(self) -> str:
        """What it reads, for people."""
        if self.ranges is None:
            return "all of it"
        first, *more = (each.label for each in self.ranges)
        return f"{first} to {more[-1]}" if more else first

    def inputs(self) -> Any:
        """As the source's: JSON that changes when what is read changes."""
        if self.ranges is None:
            return self.source.inputs()
        return [[each.name, *listing(each.path), each.start, each.stop] for each in self.ranges]

    def batches(self, workers: int, origin: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        """As the source's."""
        if self.ranges is None:
            return self.source.batches(workers, origin)
        assert isinstance(self.source, FileSource)
        return self.source.batches_of_ranges(self.ranges, workers, origin)


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

    def batches(self, workers: int, origin: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        """The same as `documents` as columns `id`, `text` and, of pairs, `target`, in text that UTF-8 can hold."""
        yield from batches_of(self.documents(workers, origin))

    def parts(self) -> list[Part]:
        """What it reads, divided by that alone; the documents of all parts in turn are those of the source."""
        return [Part(self)]


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

    def documents(self, workers: int, origin: dict[str, Any]) -> Iterator[tuple[str, ...]]:
        for batch in self.batches(workers, origin):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def batches(self, workers: int, origin: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        ranges = [Range(path, name) for path, name in self.matches()]
        return self.batches_of_ranges(ranges, workers, origin)

    def parts(self) -> list[Part]:
        if self.limit is not None:  # Where it ends, nobody knows before all up to there is read.
            return super().parts()
        files = self.matches()
        most = part_bytes(sum(expanded(path) for path, _ in files))
        parts: list[Part] = []
        group: list[Range] = []
        size = 0
        for path, name in files:
            for each, own in self.divided(path, name, most):
                if group and size + own > most:
                    parts.append(Part(self, tuple(group), size))
                    group, size = [], 0
                group.append(each)
                size += own
        return [*parts, Part(self, tuple(group), size)]

    def divided(self, path: Path, name: str, most: int) -> list[tuple[Range, int]]:
        """A file as pieces that can be read by themselves, of at most so many bytes if it can be, each with about how many it has."""
        return [(Range(path, name), expanded(path))]

    def batches_of_ranges(
        self, ranges: Sequence[Range], workers: int, origin: dict[str, Any]
    ) -> Iterator[pa.RecordBatch]:
        """The documents of some files or pieces of files."""
        origin |= dict.fromkeys(self.counts, 0)
        for piece in in_order(self.tasks(ranges), workers):
            for name, count in piece.counts.items():
                origin[name] += count
            if piece.batch is not None:
                yield piece.batch

    def tasks(self, ranges: Sequence[Range]) -> Iterator[Task]:
        """The reading of files, divided: small files together, a large one by itself."""
        files = [(each.path, each.name) for each in ranges]
        if self.limit is not None and self.counts:  # What is counted ends with the last document that is taken.
            yield Task(partial(read_files, self, files), local=True)
            return
        group: list[tuple[Path, str]] = []
        size = 0
        for path, name in files:
            own = path.stat().st_size
            large = own > (COMPRESSED_TASK_BYTES if path.suffix in COMPRESSIONS else TASK_BYTES)
            if group and (large or size + own > TASK_BYTES):
                yield Task(partial(read_files, self, group))
                group, size = [], 0
            if large:
                yield Task(partial(read_files, self, [(path, name)]), local=True)
            else:
                group.append((path, name))
                size += own
        if group:
            yield Task(partial(read_files, self, group))

    def rows(self, path: Path, name: str, counts: dict[str, int]) -> Iterator[tuple[str, ...]]:
        """The rows of one file, of a source that leaves `tasks` as it is; `counts` has the numbers of `counts`, to be added to."""
        raise NotImplementedError


def read_files(source: FileSource, files: list[tuple[Path, str]]) -> Iterator[Piece]:
    """The rows of some files, one after another, up to the source's limit."""
    counts = dict.fromkeys(source.counts, 0)
    rows = chain.from_iterable(source.rows(path, name, counts) for path, name in files)
    for batch in batches_of(rows if source.limit is None else up_to(source.limit, rows)):
        yield Piece(batch, counts.copy())
        counts |= dict.fromkeys(counts, 0)
    yield Piece(counts=counts)


def up_to(limit: int, rows: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The rows up to the one with which so many have text on all sides."""
    for row in rows:
        yield row
        limit -= all(text.strip() for text in row[1:])
        if limit <= 0:
            return


def expanded(path: Path) -> int:
    """About how many bytes a file has when it is unpacked."""
    size = path.stat().st_size
    return size * EXPANSION if path.suffix in COMPRESSIONS or path.suffix == ".parquet" else size


def part_bytes(total: int) -> int:
    """How large the parts of a source of this size may be: a power of two, so that a further file seldom divides all anew."""
    return min(PART_BYTES, max(LEAST_PART_BYTES, 1 << (max(1, total // PARTS).bit_length() - 1)))


def listing(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


@dataclass(frozen=True, kw_only=True)
class EncodedFileSource(FileSource):
    """Local files of text in some encoding, plain or compressed (`.gz`, `.bz2`, `.xz`, `.zst`)."""

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
        with open_bytes(path) as stream:
            while True:
                pending = len(decoder.getstate()[0])
                data = stream.read(CHUNK_BYTES)
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise not_in_encoding(path, self.encoding, consumed - pending, error) from None
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

    def rows(self, path: Path, name: str, counts: dict[str, int]) -> Documents:
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

    def divided(self, path: Path, name: str, most: int) -> list[tuple[Range, int]]:
        size = path.stat().st_size
        if size <= most or path.suffix in COMPRESSIONS or not utf8(self.encoding):
            return super().divided(path, name, most)
        # A line is of the piece in which it begins.
        bounds = [*range(0, size, most), size]
        return [(Range(path, name, start, stop), stop - start) for start, stop in pairwise(bounds)]

    def tasks(self, ranges: Sequence[Range]) -> Iterator[Task]:
        for each in ranges:
            for block in self._blocks(each):
                yield Task(partial(read_json_lines, block, self.text_column, self.id_column, self.errors))

    def _blocks(self, of: Range) -> Iterator[Block]:
        path, name = of.path, of.name
        if utf8(self.encoding):
            return line_blocks(path, name, of.start, of.stop)
        # Blocks are of UTF-8. What UTF-8 cannot hold is no character of the file's encoding either.
        return blocks_of((chunk.encode("utf-8", "replace") for chunk in self.chunks(path) if chunk), path, name)


def utf8(encoding: str) -> bool:
    """Whether this is a name of UTF-8. An encoding that there is not is none."""
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False


@dataclass(frozen=True, kw_only=True)
class Parquet(FileSource):
    """Parquet files with a column of text."""

    text_column: str = "text"
    """The column that holds the text."""
    id_column: str | None = None
    """The column that holds a stable id. Unset: the id is made from the text."""

    def divided(self, path: Path, name: str, most: int) -> list[tuple[Range, int]]:
        sizes = self._group_sizes(path)
        if sum(sizes) <= most:
            return [(Range(path, name), sum(sizes))]
        return [(Range(path, name, group, group + 1), size) for group, size in enumerate(sizes)]

    def tasks(self, ranges: Sequence[Range]) -> Iterator[Task]:
        for each in ranges:
            sizes = self._group_sizes(each.path)
            for group in range(each.start, len(sizes) if each.stop is None else each.stop):
                call = partial(read_row_group, each.path, each.name, group, self.text_column, self.id_column)
                yield Task(call, local=sizes[group] > ROW_GROUP_BYTES)

    def _group_sizes(self, path: Path) -> list[int]:
        columns = [column for column in (self.text_column, self.id_column) if column]
        with open_parquet(path, columns) as parquet:
            return [group_bytes(parquet, group, columns) for group in range(parquet.num_row_groups)]


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A data set of the Hugging Face hub, or a local folder that `datasets` can load."""

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
    streaming: bool = True
    """Read it over the network as it goes; otherwise it is downloaded whole first and kept in the cache of `datasets`."""

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "streaming"}

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
                streaming=self.streaming,
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
