"""Checkpoints on disk: a folder with one safetensors file a rank, and a manifest of sizes and hashes that is written last.

What is stored is free of the ranks and of the strategy that wrote it: every weight and every value of the optimizer stands under
its parameter's name, whole or as flat ranges of it in several files. So any number of ranks, under any strategy, reads just the
ranges that it keeps, and a model is loaded without the ranks, or the libraries, that wrote it.

The folder is written aside and renamed when every byte is on the disk: under its own name it is whole.
"""

import io
import json
import os
import pickle
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_prep.files import InputError, atomic_path, read_json, sync, write_json

MANIFEST, TRAINING = "manifest.json", "training.pt"
FORMAT = 2
WEIGHTS, AVERAGE = "weights", "ema"
"""Kinds of a piece: of a model's parameter, and of the moving average of it; the others are named as the optimizer names them."""

OF_THE_FOLDER = ("format", "ranks", "strategy", "files")
"""What a manifest says beside the run's own record."""

HASH = "xxh3_128"
"""Finds damage, at the speed of memory; SHA-256 would be slower than a fast disk."""
CHUNK_BYTES = 2 << 20
FULL_CHECK_BYTES = 1 << 30
"""Checkpoints up to this size have every hash read before they are used for anything; larger ones their sizes only, except
before training goes on with them: then the ranks share the reading."""
BROKEN = "broken-"
"""Begins the name of a checkpoint that was found damaged and kept aside."""
PATIENCE_SECONDS = 1800
"""How long the first rank waits for the others' files."""

DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A flat range of one tensor of a run's state, as a rank has it in memory."""

    kind: str
    """WEIGHTS, AVERAGE, or what the optimizer calls it: exp_avg, momentum_buffer..."""
    name: str
    """Of the parameter, as the model's state_dict has it."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """Where the range begins in the flattened tensor."""
    values: Tensor
    """The range, flat; written to in place when a checkpoint is loaded."""
    loaded: Callable[[Tensor], None] | None = None
    """Takes new values, where writing in place does not reach the storage."""

    @property
    def stop(self) -> int:
        return self.start + self.values.numel()

    @property
    def key(self) -> str:
        whole = self.values.numel() == torch.Size(self.shape).numel()
        return f"{self.kind}/{self.name}" + ("" if whole else f"[{self.start}:{self.stop}]")

    def write(self, values: Tensor) -> None:
        if self.loaded:
            self.loaded(values)
        else:
            self.values.copy_(values)

    def share(self, rank: int, ranks: int) -> "Piece":
        """This rank's part of a piece that every rank has."""
        size = self.values.numel()
        first, last = size * rank // ranks, size * (rank + 1) // ranks
        return Piece(self.kind, self.name, self.shape, self.start + first, self.values[first:last])

    def staged(self) -> "Piece":
        """A copy in the CPU's memory, so that training may go on while it is written."""
        return Piece(self.kind, self.name, self.shape, self.start, self.values.detach().to("cpu", copy=True))


# -- writing


class HashedFile:
    """A file that is hashed while it is being written, and on the disk when it is closed."""

    def __init__(self, path: Path):
        self.path, self.bytes, self.hash = path, 0, xxhash.xxh3_128()

    def __enter__(self) -> "HashedFile":
        self.file = self.path.open("wb", buffering=0)
        return self

    def write(self, content: memoryview | bytes) -> None:
        content = memoryview(content)
        for first in range(0, len(content), CHUNK_BYTES):
            chunk = content[first : first + CHUNK_BYTES]
            self.hash.update(chunk)
            while len(chunk):
                chunk = chunk[self.file.write(chunk) :]
        self.bytes += len(content)

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                os.fsync(self.file.fileno())
        finally:
            self.file.close()

    @property
    def entry(self) -> dict[str, Any]:
        return {"bytes": self.bytes, HASH: self.hash.hexdigest()}


def hash_of(path: Path) -> str:
    """What `HashedFile` would have found for a file."""
    found = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def values_of(piece: Piece) -> Iterable[Tensor]:
    return [piece.values]


def write_pieces(
    path: Path, pieces: Iterable[Piece], content: Callable[[Piece], Iterable[Tensor]] = values_of
) -> dict[str, Any]:
    """Write pieces (CPU or not) as a safetensors file; return its size and hash.

    Args:
        content: gives the values of a piece, part by part; of pieces that are too much for the memory, `values` may be on the
            meta device.
    """
    pieces = list(pieces)
    header, offset = {}, 0
    for piece in pieces:
        size = piece.values.numel() * piece.values.element_size()
        whole = piece.values.numel() == torch.Size(piece.shape).numel()
        shape = list(piece.shape) if whole else [piece.values.numel()]
        header[piece.key] = {
            "dtype": DTYPES[piece.values.dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    # The shape of a tensor that is cut stands beside it.
    cut = {f"{piece.kind}/{piece.name}": piece.shape for piece in pieces if piece.key.endswith("]")}
    header["__metadata__"] = {"format": "pt", "shapes": json.dumps(cut)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with HashedFile(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            for values in content(piece):
                flat = values.detach().contiguous().cpu()
                if flat.numel():
                    file.write(memoryview(flat.view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return file.entry


class FolderWriter:
    """One rank's part in writing a checkpoint folder; `begin` on every rank, a barrier, then `write` on every rank.

    Ranks meet only over the file system: each leaves its entry beside its file, and the first, who has seen all of them, writes
    the manifest and gives the folder its name. So it may run in a thread while training talks among the ranks.
    """

    def __init__(self, folder: Path, rank: int, ranks: int):
        self.folder, self.rank, self.ranks = folder, rank, ranks
        self.partial = folder.with_name(f".{folder.name}.partial")

    def begin(self) -> None:
        if self.rank == 0:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)

    def write(
        self, pieces: Iterable[Piece], training: dict[str, Any] | None, about: dict[str, Any] | None,
        content: Callable[[Piece], Iterable[Tensor]] = values_of,
    ) -> None:  # fmt: skip
        """Write this rank's pieces.

        Args:
            training: of the first rank: what else a continued run needs; plain values and tensors.
            about: of the first rank: what the manifest says beside its files.
            content: as in `write_pieces`.

        Raises:
            OSError: the disk is full, or another rank could not write.
        """
        try:
            name = f"rank-{self.rank:05d}.safetensors"
            entries = {name: write_pieces(self.partial / name, pieces, content)}
            if training is not None:
                packed = io.BytesIO()
                torch.save(training, packed)
                with HashedFile(self.partial / TRAINING) as file:
                    file.write(packed.getbuffer())
                entries[TRAINING] = file.entry
            self.announce(entries)
        except OSError as error:
            with suppress(OSError):
                (self.partial / f"failed-{self.rank}").write_text(str(error))
            raise
        if self.rank == 0:
            self.commit(about or {})

    def announce(self, entries: dict[str, Any]) -> None:
        """Tell the first rank that this one's files are on the disk. It may rename the folder the moment it sees this, so nothing follows."""
        path = self.entry_file(self.rank)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(entries), encoding="utf-8")
        temporary.replace(path)

    def entry_file(self, rank: int) -> Path:
        return self.partial / f"rank-{rank:05d}.json"

    def commit(self, about: dict[str, Any]) -> None:
        files: dict[str, Any] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        for rank in range(self.ranks):
            while not self.entry_file(rank).exists():
                failures = sorted(self.partial.glob("failed-*"))
                if failures or time.monotonic() > deadline:
                    reason = failures[0].read_text() if failures else f"no file within {PATIENCE_SECONDS} s"
                    who = failures[0].name.rpartition("-")[2] if failures else rank
                    raise OSError(f"rank {who} did not write its part of {self.folder}: {reason}")
                time.sleep(0.005)
            files |= read_json(self.entry_file(rank))
        write_json(self.partial / MANIFEST, {"format": FORMAT, "ranks": self.ranks, **about, "files": files})
        for rank in range(self.ranks):
            self.entry_file(rank).unlink()
        sync(self.partial)
        replace_folder(self.partial, self.folder)


def replace_folder(new: Path, final: Path) -> None:
    """Give a folder its name; one that has the name already goes."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill in the middle of writing left in a folder of checkpoints, and put back what was being replaced."""
    for old in folder.glob(".*.old"):
        final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial) if partial.is_dir() and not partial.is_symlink() else partial.unlink()


def point(link: Path, target: Path) -> None:
    """Make `link` name a checkpoint beside it, at once and whole."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)
    sync(link.parent)


# -- going on though one is damaged


def older_checkpoints(link: Path) -> list[Path]:
    """The checkpoints that a run may go on from where `link` (last.ckpt, best.ckpt) names one: that, then the older ones.

    A link that is missing, as after a kill before the first one was made, stands for the newest.
    """
    steps = sorted((path for path in link.parent.glob("step-*") if path.is_dir()), reverse=True)
    if not link.is_symlink():
        return [link, *steps] if link.exists() else steps
    named = link.parent / link.readlink().name
    return [named, *(path for path in steps if path.name < named.name)]


def set_aside(path: Path) -> Path | None:
    """Rename a damaged checkpoint so that nothing finds it any more; return its new name, None where there is nothing of it."""
    if not path.exists():
        return None
    aside, number = path.with_name(BROKEN + path.name), 0
    while aside.exists():
        number += 1
        aside = path.with_name(f"{BROKEN}{path.name}.{number}")
    path.rename(aside)
    sync(path.parent)
    return aside


# -- reading

STORED = re.compile(r"(?P<kind>[^/]+)/(?P<name>[^\[]+)(?:\[(?P<start>\d+):(?P<stop>\d+)\])?")


class Stored(NamedTuple):
    """Where a range of a tensor lies."""

    start: int
    stop: int
    file: Path
    key: str


class StateFolder:
    """A checkpoint folder, read range by range.

    Raises:
        InputError: it is no checkpoint, of another format, or a file is missing or of another size.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / MANIFEST).is_file():
            raise InputError(
                f"{path} is not a checkpoint: it has no {MANIFEST}; give last, best or a folder that has one"
            )
        self.manifest = read_json(path / MANIFEST)
        if not isinstance(self.manifest, dict) or not isinstance(self.manifest.get("files", {}), dict):
            raise InputError(f"{path / MANIFEST} is not a checkpoint's, so the checkpoint is damaged: use another")
        if self.manifest.get("format") != FORMAT:
            raise InputError(
                f"{path} has checkpoint format {self.manifest.get('format')}, this version reads {FORMAT}: use the version that wrote it"
            )
        if not {"files", "ranks", "strategy"} <= self.manifest.keys():
            raise InputError(f"{path / MANIFEST} lacks a part, so the checkpoint is damaged: use another")
        for name, entry in self.manifest["files"].items():
            if not isinstance(entry, dict) or not {"bytes", HASH} <= entry.keys():
                raise InputError(f"{path / MANIFEST} lacks a part, so the checkpoint is damaged: use another")
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                there = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
                raise InputError(
                    f"{file} {there} instead of {entry['bytes']}, so the checkpoint is damaged: use another"
                )

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Read every byte, or one rank's share of the files.

        Raises:
            InputError: the hash of a file is not the manifest's, or a tensor has a gap.
        """
        for name, entry in [*self.manifest["files"].items()][rank::ranks]:
            if hash_of(self.path / name) != entry[HASH]:
                raise InputError(
                    f"{self.path / name} does not match its hash in {MANIFEST}, so it was changed: use another"
                )
        for (kind, name), ranges in self.index.items():
            self.covered(kind, name, 0, torch.Size(self.shapes[kind, name]).numel(), ranges)

    def training(self) -> dict[str, Any]:
        """What a continued run needs beside weights and optimizer state."""
        return torch.load(self.path / TRAINING, map_location="cpu", weights_only=True)

    @cached_property
    def index(self) -> dict[tuple[str, str], list[Stored]]:
        """The ranges of every tensor by (kind, name), in their order."""
        found: dict[tuple[str, str], list[Stored]] = {}
        self.shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        for name in sorted(self.manifest["files"]):
            if not name.endswith(".safetensors"):
                continue
            with self.opened(self.path / name) as file:
                cut = json.loads((file.metadata() or {}).get("shapes", "{}"))
                for key in file.keys():  # noqa: SIM118  not a dict
                    match = STORED.fullmatch(key)
                    assert match, key
                    identity = match["kind"], match["name"]
                    if match["start"] is None:
                        shape = tuple(file.get_slice(key).get_shape())
                        start, stop = 0, torch.Size(shape).numel()
                    else:
                        shape = tuple(cut[f"{identity[0]}/{identity[1]}"])
                        start, stop = int(match["start"]), int(match["stop"])
                    self.shapes[identity] = shape
                    found.setdefault(identity, []).append(Stored(start, stop, self.path / name, key))
        for ranges in found.values():
            ranges.sort()
        return found

    def opened(self, file: Path) -> Any:
        try:
            return safe_open(file, "pt")
        except SafetensorError as error:
            raise InputError(f"{file} cannot be read ({error}), so the checkpoint is damaged: use another") from error

    @property
    def written_by(self) -> tuple[int, str]:
        """How many ranks wrote it, under which strategy."""
        return self.manifest["ranks"], self.manifest["strategy"]

    @property
    def record(self) -> dict[str, Any]:
        """What the run said of itself: model, data, step, tokens_seen..."""
        return {name: value for name, value in self.manifest.items() if name not in OF_THE_FOLDER}

    def check(self) -> None:
        """Read every hash, unless there is too much of it. Raises InputError as `verify` does."""
        if self.bytes <= FULL_CHECK_BYTES:
            self.verify()

    def has(self, kind: str, name: str) -> bool:
        return (kind, name) in self.index

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.index}

    def names(self, kind: str) -> list[str]:
        return [name for of, name in self.index if of == kind]

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        _ = self.index
        return self.shapes[kind, name]

    def dtype(self, kind: str, name: str) -> torch.dtype:
        stored = self.index[kind, name][0]
        with self.opened(stored.file) as file:
            return TORCH_DTYPES[file.get_slice(stored.key).get_dtype()]

    def covered(self, kind: str, name: str, start: int, stop: int, ranges: list[Stored]) -> list[Stored]:
        """The stored ranges that hold [start, stop), without overlap."""
        chosen, reached = [], start
        for stored in ranges:
            if stored.start <= reached < stored.stop and reached < stop:
                chosen.append(stored)
                reached = stored.stop
        if reached < stop:
            raise InputError(f"{self.path} lacks a part of {kind} of {name}, so the checkpoint is damaged: use another")
        return chosen

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """The elements [start, stop) of a flattened tensor; only they are read.

        Raises:
            InputError: the checkpoint has no such tensor.
        """
        if (kind, name) not in self.index:
            raise InputError(
                f"{self.path} has no {kind} of {name}: it was written by another model or another optimizer, or it has weights alone"
            )
        parts, reached = [], start
        for stored in self.covered(kind, name, start, stop, self.index[kind, name]):
            with self.opened(stored.file) as file:
                parts.append(
                    flat_slice(
                        file.get_slice(stored.key), reached - stored.start, min(stop, stored.stop) - stored.start
                    )
                )
            reached = stored.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor in its shape."""
        shape = self.shape(kind, name)
        return self.read(kind, name, 0, torch.Size(shape).numel()).view(shape)

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for name in self.names(kind):
            yield name, self.tensor(kind, name)


def flat_slice(stored: Any, start: int, stop: int) -> Tensor:
    """Elements of a tensor in a safetensors file by their flat numbers, reading no more than the rows that hold them."""
    shape = stored.get_shape()
    if len(shape) <= 1:
        return stored[start:stop] if shape else stored[...].reshape(1)
    row = torch.Size(shape[1:]).numel()
    first, last = start // row, -(-stop // row)
    return stored[first:last].reshape(-1)[start - first * row : stop - first * row]


# -- one file


class StateFile:
    """A consolidated checkpoint: one file with the weights and the run's record, read like a folder."""

    def __init__(self, path: Path, record_key: str):
        self.path = path
        self.content = read_file(path)
        if record_key not in self.content:
            raise InputError(f"{path} was not written by this project: it has no record of its model")
        self.record: dict[str, Any] = self.content[record_key]
        self.weights = {name.removeprefix("model."): values for name, values in self.content["state_dict"].items()}

    kinds = frozenset({WEIGHTS})
    written_by = (1, "one file")

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Its reader has met every byte."""

    def check(self) -> None:
        """Its reader has met every byte."""

    def training(self) -> dict[str, Any]:
        return self.content

    def has(self, kind: str, name: str) -> bool:
        return kind == WEIGHTS and name in self.weights

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        if not self.has(kind, name):
            raise InputError(
                f"{self.path} has no {kind} of {name}: it was written by another model, or it has weights alone"
            )
        return self.weights[name].reshape(-1)[start:stop]

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        if kind == WEIGHTS:
            yield from self.weights.items()


def write_file(path: Path, content: dict[str, Any]) -> None:
    """A consolidated checkpoint: one file, for use without training it further."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's writer stumbles over the failed write; only that says what is wrong, a full disk for one.
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
            raise


def read_file(path: Path) -> dict[str, Any]:
    """The content of a consolidated checkpoint, on the CPU. Raises InputError where it is broken or none."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                weights = {f"model.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
                about = {name: text for name, text in (file.metadata() or {}).items() if name != "format"}
            return {name: json.loads(text) for name, text in about.items()} | {"state_dict": weights}
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, BadZipFile, pickle.UnpicklingError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint: it is damaged or not one; use another") from error
