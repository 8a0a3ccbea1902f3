"""How fast a checkpoint is written, beside the same bytes written plainly and beside torch's distributed checkpoint."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from pipeline.state_files import FolderWriter, Piece, StateFolder

pytestmark = pytest.mark.benchmark

ELEMENTS = 100_000_000  # 400 MB: weights and two moments of a model of 33M parameters
TENSORS = 60


def state() -> dict[str, torch.Tensor]:
    return {f"blocks.{k}.weight": torch.randn(ELEMENTS // TENSORS // 1000, 1000) for k in range(TENSORS)}


def write_plainly(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with (path / "plain.bin").open("wb", buffering=0) as file:
        for values in tensors.values():
            file.write(memoryview(values.numpy()).cast("B"))
        os.fsync(file.fileno())


def write_ours(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    writer = FolderWriter(path / "step-00000001", 0, 1)
    writer.begin()
    about = {"strategy": "SingleDevice", "model": {}, "data": {}, "step": 1, "tokens_seen": 1}
    pieces = [Piece("weights", name, tuple(values.shape), 0, values.view(-1)) for name, values in tensors.items()]
    writer.write(pieces, {}, about)


def write_with_torch(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path / "dcp", sync_files=True))


def seconds(write: Callable[[Path, dict], None], folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    began = time.perf_counter()
    write(folder, tensors)
    return time.perf_counter() - began


def test_a_checkpoint_is_written_within_30_percent_of_the_disks_speed(tmp_path):
    tensors, writers = state(), (write_plainly, write_ours, write_with_torch)
    fastest = {write: min(seconds(write, tmp_path / "out", tensors) for _ in range(1)) for write in writers}
    for _ in range(4):
        for write in writers:
            fastest[write] = min(fastest[write], seconds(write, tmp_path / "out", tensors))
    plain, ours, theirs = (fastest[write] for write in writers)
    gigabytes = 4 * ELEMENTS / 1e9
    print(
        f"\nplain {gigabytes / plain:.2f} GB/s; ours, hashed, {plain / ours:.2f} of it; torch's, not hashed, {plain / theirs:.2f}; "
    )
    write_ours(tmp_path, tensors)
    StateFolder(tmp_path / "step-00000001").verify()
    assert plain / ours >= 0.7
