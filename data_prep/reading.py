"""Bytes of files, plain or compressed, as a stream, in chunks, and in blocks of whole lines."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.files import InputError

BLOCK_BYTES = 2**22
LINE_BYTES = 2**28
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """The content of a file as a stream with `read`; `.gz`, `.bz2`, `.xz` and `.zst` are decompressed.

    InputError where, inside of the block, compressed content turns out to be damaged.
    """
    kind = COMPRESSIONS.get(path.suffix)
    try:
        with open_stream(path) as stream:
            yield stream
    except OSError as error:
        # Codecs raise bare OSErrors, the system ones with a number. BadGzipFile is among the former.
        if kind is None or error.errno is not None:
            raise
        raise damaged(path, kind, error) from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise damaged(path, kind or "plain", error) from None


def open_stream(path: Path) -> Any:
    match path.suffix:
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return open(path, "rb")


def damaged(path: Path, kind: str, error: Exception) -> InputError:
    return InputError(f"{path} is not a whole {kind} file ({error}): fetch it again.")


@dataclass(frozen=True)
class Block:
    """Whole lines of a file: a range of a plain file, or bytes that were decompressed."""

    path: Path
    name: str
    start: int
    """Offset of its first byte in the file, or in what the file decompresses to."""
    stop: int
    data: bytes | None = None
    line: int | None = None
    """Number of its first line, counted from 1, where it is known."""

    def content(self) -> bytes:
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            return stream.read(self.stop - self.start)

    def first_line(self) -> int:
        """The number of its first line, counted from 1; reads all of a plain file before it."""
        if self.line is not None:
            return self.line
        lines, rest = 1, self.start
        with open(self.path, "rb") as stream:
            while rest:
                data = stream.read(min(rest, BLOCK_BYTES))
                lines, rest = lines + data.count(b"\n"), rest - len(data)
        return lines


def line_blocks(path: Path, name: str, first: int = 0, last: int | None = None) -> Iterator[Block]:
    """A file as blocks of whole lines, a few megabytes each; of a plain file nothing is read but around the borders.

    Of a plain file, `first` and `last` take the lines that begin at these bytes or between them, the last one's not included.
    """
    if path.suffix in COMPRESSIONS:
        with open_bytes(path) as stream:
            yield from blocks_of(iter(lambda: stream.read(BLOCK_BYTES), b""), path, name)
        return
    size = path.stat().st_size
    end = size if last is None else min(last, size)

    with open(path, "rb") as stream:

        def line_end(place: int, start: int) -> int:
            """Where the line ends that the byte at this place is of, or the file."""
            stream.seek(place)
            while place < size:
                data = stream.read(2**16)
                found = data.find(b"\n")
                place += len(data) if found < 0 else found + 1
                if found >= 0 or not data:
                    break
                if place - start > LINE_BYTES:
                    raise too_long(path)
            return min(place, size)

        start = line_end(first - 1, first - 1) if first else 0
        while start < end:
            # The last line is the one that the byte before the end is of.
            stop = line_end(min(start + BLOCK_BYTES, end - 1), start)
            yield Block(path, name, start, stop)
            start = stop


def blocks_of(chunks: Iterator[bytes], path: Path, name: str) -> Iterator[Block]:
    """Chunks of a file's content as blocks of whole lines."""
    rest: list[bytes] = []
    start, line, pending = 0, 1, 0
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            rest.append(chunk)
            pending += len(chunk)
            if pending > LINE_BYTES:
                raise too_long(path)
            continue
        data = b"".join([*rest, chunk[:end]])
        yield Block(path, name, start, start + len(data), data, line)
        start, line = start + len(data), line + data.count(b"\n")
        rest, pending = [chunk[end:]], len(chunk) - end
    if data := b"".join(rest):
        yield Block(path, name, start, start + len(data), data, line)


def too_long(path: Path) -> InputError:
    return InputError(
        f"{path} has a line of more than {LINE_BYTES} bytes: JSON lines have one object a line, so divide it first."
    )


def not_in_encoding(path: Path, encoding: str, byte: int, error: UnicodeDecodeError) -> InputError:
    """The error for bytes that an encoding does not allow; `byte` is where `error.object` starts."""
    return InputError(
        f"{path} is not {encoding}: byte {byte + error.start} is 0x{error.object[error.start]:02x} ({error.reason}); "
        "set the source's `encoding` (latin-1, say) or `errors: replace`."
    )
