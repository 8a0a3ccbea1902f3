"""Token shards on disk: Megatron-LM's `.bin`/`.idx` pairs and the manifest that names them, written and read.

A `.bin` file is the token ids of whole documents, one after another; its `.idx` file holds their lengths and offsets.
A document is one sequence, or two where it is a pair: a text and its target, each with its own end-of-text token.
A shard belongs to one source and one split. `manifest.json` gives every count and checksum, so that opening a corpus
scans nothing.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.files import InputError, atomic_path, fingerprint, read_json, sha256_file, write_bytes, write_json

MANIFEST = "manifest.json"
FORMAT = 1
SPLITS = ("train", "validation", "test")

# The index starts with a magic, a version, a type code, the number of sequences and the number of document boundaries.
# After it stand an int32 length and an int64 byte offset for each sequence, and the int64 document boundaries, which
# count sequences.
HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES = {"uint16": 8, "int32": 4}
REMAKE = "run `python -m data_prep run` (or `adopt`) again"


def dtype_for(vocab_size: int) -> str:
    """The narrowest of the two types in use that holds every id of a vocabulary."""
    return "uint16" if vocab_size < 2**16 else "int32"


@dataclass(frozen=True)
class Shard:
    file: str
    """Path of the pair relative to the manifest, without suffix."""
    source: str
    documents: int
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents' text (of a pair, both sides), end-of-text tokens not counted."""
    sha256: Mapping[str, str]
    """Checksums of the two files, under "bin" and "idx"."""


def shard_file(split: str, source: str, number: int) -> str:
    """What the files of a shard are called, below the manifest and without suffix."""
    return f"{split}/{source}-{number:05d}"


class ShardWriter:
    """Writes the documents of one source and split to consecutive shards of at most `shard_tokens` tokens.

    A document longer than that has a shard to itself: documents never cross a shard's end. With two
    `sequences_per_document` each is a pair. Use as a context manager; `shards` is complete when the block has ended.
    """

    def __init__(
        self, folder: Path, split: str, source: str, dtype: str, shard_tokens: int, sequences_per_document: int = 1
    ):
        self.folder, self.split, self.source, self.dtype, self.shard_tokens = folder, split, source, dtype, shard_tokens
        self.sequences_per_document = sequences_per_document
        self.shards: list[Shard] = []
        self._start_shard()

    def _start_shard(self) -> None:
        self._open = ExitStack()
        self._stream: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._lengths: list[np.ndarray] = []
        self._tokens = self._text_bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self._finish_shard()
        else:
            self._open.__exit__(kind, error, trace)

    def add(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        """Append documents.

        Args:
            tokens: the ids of all their sequences, one after another.
            lengths: ids of each sequence; of pairs, source and target by turns or as an array (documents, 2).
            text_bytes: UTF-8 bytes of each document.
        """
        lengths = lengths.reshape(-1, self.sequences_per_document)
        ends = np.cumsum(lengths.sum(axis=1), dtype=np.int64)
        done = 0
        while done < len(lengths):
            begin = int(ends[done - 1]) if done else 0
            room = self.shard_tokens - self._tokens
            fitting = int(np.searchsorted(ends, begin + room, side="right"))
            if fitting <= done and self._tokens:
                self._finish_shard()
                continue
            stop = max(fitting, done + 1)
            self._append(tokens[begin : ends[stop - 1]], lengths[done:stop], int(text_bytes[done:stop].sum()))
            done = stop

    def _append(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int) -> None:
        if self._stream is None:
            temporary = self._open.enter_context(atomic_path(self._path().with_suffix(".bin")))
            self._stream = self._open.enter_context(open(temporary, "wb"))
        content = np.ascontiguousarray(tokens, self.dtype).data
        self._stream.write(content)
        self._hash.update(content)
        self._lengths.append(lengths.astype(np.int32))  # (documents, sequences_per_document)
        self._tokens += len(tokens)
        self._text_bytes += text_bytes

    def _path(self) -> Path:
        return self.folder / shard_file(self.split, self.source, len(self.shards))

    def _finish_shard(self) -> None:
        if self._stream is None:
            return
        path = self._path()
        self._open.close()
        lengths = np.concatenate(self._lengths)
        index = index_bytes(lengths, self.dtype)
        write_bytes(path.with_suffix(".idx"), index)
        sha256 = {"bin": self._hash.hexdigest(), "idx": hashlib.sha256(index).hexdigest()}
        file = shard_file(self.split, self.source, len(self.shards))
        self.shards.append(Shard(file, self.source, len(lengths), self._tokens, self._text_bytes, sha256))
        self._start_shard()


def index_bytes(lengths: np.ndarray, dtype: str) -> bytes:
    """The content of an `.idx` file for documents whose sequences have these lengths, (documents, sequences each)."""
    documents, sequences_per_document = lengths.shape
    count = lengths.size
    lengths = lengths.ravel()
    offsets = np.zeros(count, np.int64)
    np.cumsum(lengths[:-1], out=offsets[1:])
    offsets *= np.dtype(dtype).itemsize
    boundaries = np.arange(documents + 1, dtype=np.int64) * sequences_per_document
    header = HEADER.pack(MAGIC, VERSION, CODES[dtype], count, len(boundaries))
    return header + lengths.astype(np.int32).tobytes() + offsets.tobytes() + boundaries.tobytes()


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: token type, vocabulary, sources and the shards of each split."""

    folder: Path
    dtype: str
    vocab_size: int
    end_of_text: int
    tokenizer: str
    """Fingerprint of the tokenizer that made the ids; its file `tokenizer.json` lies beside the manifest."""
    sources: list[dict[str, Any]]
    splits: dict[str, tuple[Shard, ...]]
    sequences_per_document: int = 1
    """2 where the documents are pairs."""

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read `manifest.json`, given as the file itself or as its folder."""
        path = Path(path)
        file = path / MANIFEST if path.is_dir() else path
        if not file.is_file():
            raise InputError(
                f"There is no token manifest at {file}: {REMAKE} or give the folder that holds {MANIFEST}."
            )
        content = read_json(file)
        try:
            if content["format"] != FORMAT:
                raise InputError(
                    f"{file} has format {content['format']}, this version reads format {FORMAT}: {REMAKE}."
                )
            splits = {name: tuple(Shard(**shard) for shard in shards) for name, shards in content["splits"].items()}
            fields = {name: content[name] for name in ("dtype", "vocab_size", "end_of_text", "tokenizer", "sources")}
            fields["sequences_per_document"] = content.get("sequences_per_document", 1)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is not a token manifest ({type(error).__name__} {error}): {REMAKE}.") from None
        return cls(folder=file.parent, splits=splits, **fields)

    def save(self) -> None:
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_json(self.folder / MANIFEST, {"format": FORMAT, **content})

    @property
    def pairs(self) -> bool:
        """Whether each document is a pair: a text and its target."""
        return self.sequences_per_document == 2

    @property
    def fingerprint(self) -> str:
        """Names the tokens and their meaning; the same wherever the folder lies and whatever made it."""
        # The checksum of an index covers how many sequences make a document.
        shards = {
            split: [[shard.source, shard.documents, shard.tokens, dict(shard.sha256)] for shard in shards]
            for split, shards in self.splits.items()
        }
        return fingerprint([self.dtype, self.vocab_size, self.end_of_text, self.tokenizer, shards])

    @property
    def remake(self) -> str:
        """How to come by files again whose size is right: a run looks at sizes alone, and units of work are other names of the same files."""
        units = self.folder.parent / ".units" / self.folder.name
        return f"remove the folders {self.folder} and {units}, and {REMAKE}" if units.is_dir() else REMAKE

    def shards(self, split: str) -> tuple[Shard, ...]:
        if not self.splits.get(split):
            have = ", ".join(name for name, shards in self.splits.items() if shards) or "none"
            raise InputError(f"{self.folder} has no tokens in split {split!r}; splits with tokens: {have}.")
        return self.splits[split]

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in self.shards(split))

    def open(self, split: str) -> "TokenReader":
        """The tokens of a split as one sequence. Checks every file's size and header, not its checksum."""
        return TokenReader(self.folder, self.dtype, self.shards(split), self.sequences_per_document)

    def ids(self, split: str, source: str, documents: Collection[int]) -> dict[int, str]:
        """The ids of documents of one source, by their numbers in it; empty where `data_prep run` left no Parquet beside the shards."""
        from data_prep import document  # Arrow, which training does without

        return document.read_ids(self._parquet(split), source, documents)

    def find_id(self, split: str, source: str, id: str) -> int | None:
        """The number in its source of the document with this id; None where there is none, or no Parquet."""
        from data_prep import document

        return document.find_id(self._parquet(split), source, id)

    def _parquet(self, split: str) -> Path:
        return self.folder.parent / "split" / split

    def verify(self, split: str | None = None) -> None:
        """Check sizes, headers and checksums of one split or of all; InputError names the first damaged file."""
        for name in [split] if split else [name for name, shards in self.splits.items() if shards]:
            for problem in self.problems(name):
                raise InputError(problem)

    def problems(self, split: str) -> Iterator[str]:
        """A sentence for each file of a split that is missing, or has not the size, header or checksum that is listed."""
        for shard in self.shards(split):
            try:
                map_tokens(self.folder / shard.file, self.dtype, shard, self.sequences_per_document)
            except InputError as error:
                yield str(error)
                continue
            for suffix, expected in shard.sha256.items():
                file = self.folder / f"{shard.file}.{suffix}"
                if sha256_file(file) != expected:
                    yield f"{file} does not match its checksum in {MANIFEST}, so it was changed: {self.remake}."


@dataclass(frozen=True)
class Place:
    """Where a document stands."""

    shard: Shard
    row: int
    """Its number in the shard."""
    offset: int
    """Its first token in the shard's `.bin`."""
    start: int
    """Its first token among all of the reader's."""
    tokens: int


class TokenReader:
    """The tokens of several shards as one memory-mapped sequence, and their documents."""

    def __init__(self, folder: Path, dtype: str, shards: tuple[Shard, ...], sequences_per_document: int = 1):
        self.folder, self.shards, self.sequences_per_document = folder, shards, sequences_per_document
        self._maps = [map_tokens(folder / shard.file, dtype, shard, sequences_per_document) for shard in shards]
        self._index_files = [folder / f"{shard.file}.idx" for shard in shards]
        self._starts = np.cumsum([0] + [shard.tokens for shard in shards]).tolist()
        self._document_starts = np.cumsum([0] + [shard.documents for shard in shards]).tolist()
        self._index: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def documents(self) -> int:
        return self._document_starts[-1]

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens `start` to `start + length` as int64; the window may cross shards. IndexError beyond either end."""
        window = np.empty(length, np.int64)
        self._read_into(window, start)
        return window

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """One row of `length` tokens for each start: int64 of shape (len(starts), length)."""
        windows = np.empty((len(starts), length), np.int64)
        for window, start in zip(windows, starts.tolist(), strict=True):
            self._read_into(window, start)
        return windows

    def _read_into(self, window: np.ndarray, start: int) -> None:
        if start < 0 or start + len(window) > len(self):
            raise IndexError(f"Tokens {start} to {start + len(window)} are outside of the {len(self)} there are.")
        filled = 0
        while filled < len(window):
            shard = bisect_right(self._starts, start + filled) - 1
            piece = self._maps[shard][start + filled - self._starts[shard] :][: len(window) - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)

    def sequences(self, k: int) -> list[np.ndarray]:
        """The sequences of document `k`, one or the two of a pair, each with its end-of-text token, as int64."""
        shard, row = self._locate(k)
        lengths, offsets = self._shard_index(shard)
        tokens = self._maps[shard]
        begin = int(offsets[row, 0]) // tokens.itemsize
        found = []
        for length in lengths[row].tolist():
            found.append(tokens[begin : begin + length].astype(np.int64))
            begin += length
        return found

    def document(self, k: int) -> np.ndarray:
        """The ids of document `k`, its end-of-text token (a pair's two) included, as int64."""
        return np.concatenate(self.sequences(k))

    def place(self, k: int) -> Place:
        """Where document `k` stands."""
        shard, row = self._locate(k)
        lengths, offsets = self._shard_index(shard)
        offset = int(offsets[row, 0]) // self._maps[shard].itemsize
        return Place(self.shards[shard], row, offset, self._starts[shard] + offset, int(lengths[row].sum()))

    def documents_of(self, start: int, length: int) -> range:
        """The documents that the tokens `start` to `start + length` are of."""
        if start < 0 or length < 1 or start + length > len(self):
            raise IndexError(f"Tokens {start} to {start + length} are outside of the {len(self)} there are.")
        return range(self._document_at(start), self._document_at(start + length - 1) + 1)

    def _document_at(self, token: int) -> int:
        shard = bisect_right(self._starts, token) - 1
        offsets = self._shard_index(shard)[1][:, 0]
        byte = (token - self._starts[shard]) * self._maps[shard].itemsize
        # Not searchsorted, which copies the whole column, as it is not aligned in the file.
        return self._document_starts[shard] + bisect_right(offsets, byte) - 1  # pyright: ignore[reportArgumentType]

    def _locate(self, k: int) -> tuple[int, int]:
        """The shard of document `k`, and its number there."""
        if not 0 <= k < self.documents:
            raise InputError(f"There is no document {k}: this split has documents 0 to {self.documents - 1}.")
        shard = bisect_right(self._document_starts, k) - 1
        return shard, k - self._document_starts[shard]

    def sequence_lengths(self) -> np.ndarray:
        """Ids of each sequence of each document, end-of-text included: int32 (documents, sequences_per_document)."""
        return np.concatenate([self._shard_index(shard)[0] for shard in range(len(self._maps))])

    def _shard_index(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._index:
            self._index[shard] = read_index(self._index_files[shard], self.sequences_per_document)
        return self._index[shard]

    @property
    def pairs(self) -> int:
        """How many pairs there are. InputError where the documents have no target."""
        if self.sequences_per_document != 2:
            raise InputError(
                f"{self.folder} holds plain text, not pairs of a text and its target: "
                "prepare a corpus from a Pairs source."
            )
        return self.documents

    def pair(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of pair `k`, each with its end-of-text token, as int64."""
        if k >= self.pairs:
            raise InputError(f"There is no pair {k}: this split has pairs 0 to {self.pairs - 1}.")
        source, target = self.sequences(k)
        return source, target

    def gather_pairs(self, indices: Iterable[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`pair` for each of these indices, in their order."""
        return [self.pair(int(k)) for k in indices]

    def pair_lengths(self) -> np.ndarray:
        """Ids of the source and of the target of each pair, end-of-text included: int32 of shape (pairs, 2)."""
        return self.sequence_lengths().reshape(self.pairs, 2)


def map_tokens(path: Path, dtype: str, shard: Shard, sequences_per_document: int) -> np.ndarray:
    """Map a shard's `.bin` file after checking that both files have the size and header that the manifest claims."""
    sequences = shard.documents * sequences_per_document
    expected = {
        ".bin": shard.tokens * np.dtype(dtype).itemsize,
        ".idx": HEADER.size + sequences * (4 + 8) + (shard.documents + 1) * 8,
    }
    for suffix, size in expected.items():
        file = path.with_name(path.name + suffix)
        if not file.is_file():
            raise InputError(f"{file} is missing, but {MANIFEST} lists it: {REMAKE}.")
        if file.stat().st_size != size:
            raise InputError(
                f"{file} has {file.stat().st_size} bytes instead of {size}, so it was cut or changed: {REMAKE}."
            )
    index = path.with_name(path.name + ".idx")
    with open(index, "rb") as stream:
        header = HEADER.unpack(stream.read(HEADER.size))
    if header != (MAGIC, VERSION, CODES[dtype], sequences, shard.documents + 1):
        raise InputError(f"{index} does not start as the index of {shard.documents} documents of {dtype}: {REMAKE}.")
    # A plain array over the mapping: slices of a memmap cost ten times as much as what a window copies.
    return np.memmap(path.with_name(path.name + ".bin"), dtype=dtype, mode="r").view(np.ndarray)


def read_index(path: Path, sequences_per_document: int) -> tuple[np.ndarray, np.ndarray]:
    """Token counts and byte offsets of the sequences of an `.idx` file, mapped: (documents, sequences each)."""
    content = np.memmap(path, mode="r")
    count = HEADER.unpack(content[: HEADER.size].tobytes())[3]
    lengths = np.frombuffer(content, np.int32, count, HEADER.size)
    offsets = np.frombuffer(content, np.int64, count, HEADER.size + lengths.nbytes)
    return lengths.reshape(-1, sequences_per_document), offsets.reshape(-1, sequences_per_document)
