"""Any `.bin`/`.idx` pair of Megatron-LM's indexed data set, without a manifest: what others wrote, or a shard alone."""

import struct
from pathlib import Path

import numpy as np

from data_prep.files import InputError
from data_prep.shards import HEADER, MAGIC, VERSION

TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}


class IndexedTokens:
    """The documents of one pair of files, mapped: each is one or more sequences of ids, as Megatron-LM's class has them."""

    def __init__(self, path: str | Path):
        """`path` is either file, or both without their suffix."""
        path = Path(path)
        base = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        self.index, self.bin = (base.with_name(f"{base.name}.{suffix}") for suffix in ("idx", "bin"))
        for file in (self.index, self.bin):
            if not file.is_file():
                raise InputError(f"{file} is missing: an indexed data set has a .bin and an .idx file of one name.")
        try:
            with open(self.index, "rb") as stream:
                magic, version, code, sequences, boundaries = HEADER.unpack(stream.read(HEADER.size))
        except struct.error:
            magic, version, code, sequences, boundaries = b"", 0, 0, 0, 0
        if magic != MAGIC or version != VERSION or code not in TYPES:
            raise InputError(f"{self.index} is not the index of an indexed data set, version {VERSION}: give another.")
        expected = HEADER.size + sequences * (4 + 8) + boundaries * 8
        # Data sets of several modalities have a byte more for each sequence.
        if self.index.stat().st_size not in (expected, expected + sequences):
            raise InputError(
                f"{self.index} has {self.index.stat().st_size} bytes instead of {expected}, so it was cut: copy it again."
            )
        self.dtype = TYPES[code]
        content = np.memmap(self.index, mode="r")
        self.lengths = np.frombuffer(content, np.int32, sequences, HEADER.size)
        self.offsets = np.frombuffer(content, np.int64, sequences, HEADER.size + 4 * sequences)
        # Where each document begins, counted in sequences, and where the last ends.
        self.boundaries = np.frombuffer(content, np.int64, boundaries, HEADER.size + 12 * sequences)
        self._bytes = np.memmap(self.bin, mode="r") if self.bin.stat().st_size else np.zeros(0, np.uint8)
        ends = self.offsets + self.lengths.astype(np.int64) * np.dtype(self.dtype).itemsize
        if sequences and int(ends.max()) > len(self._bytes):
            raise InputError(
                f"{self.bin} has {len(self._bytes)} bytes, its index goes to {int(ends.max())}: copy it again."
            )

    @property
    def documents(self) -> int:
        return max(len(self.boundaries) - 1, 0)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def sequences(self, k: int) -> list[np.ndarray]:
        """The sequences of document `k`, in the type of the file."""
        if not 0 <= k < self.documents:
            raise InputError(f"There is no document {k}: {self.bin.name} has documents 0 to {self.documents - 1}.")
        return [self._sequence(number) for number in range(self.boundaries[k], self.boundaries[k + 1])]

    def _sequence(self, number: int) -> np.ndarray:
        offset, size = int(self.offsets[number]), np.dtype(self.dtype).itemsize * int(self.lengths[number])
        return self._bytes[offset : offset + size].view(self.dtype)

    def last_ids(self) -> dict[int, int]:
        """Which ids end documents, and how many each: one alone where an end-of-text token stands after each document."""
        last = self.boundaries[1:][np.diff(self.boundaries) > 0] - 1
        last = last[self.lengths[last] > 0]
        size = np.dtype(self.dtype).itemsize
        places = self.offsets[last] + (self.lengths[last].astype(np.int64) - 1) * size
        ends = self._bytes[places[:, None] + np.arange(size)].view(self.dtype).ravel()
        return dict(zip(*(part.tolist() for part in np.unique(ends, return_counts=True)), strict=True))


def pairs_of_files(folder: Path) -> list[Path]:
    """The indexed data sets in a folder and below it, or the one that is named, without suffix, sorted."""
    if not folder.is_dir():
        return [folder.with_suffix("") if folder.suffix in (".bin", ".idx") else folder]
    return sorted(path.with_suffix("") for path in folder.rglob("*.idx"))
