"""The format of checkpoints: any cut reads back exactly, damage is found and named, a kill leaves what was there, a save is of its step."""

import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_prep.files import InputError
from pipeline import state_files
from pipeline.cli import main
from pipeline.state_files import MANIFEST, WEIGHTS, FolderWriter, Piece, StateFolder, clear_leftovers

ABOUT = {
    "strategy": "SingleDevice", "step": 3, "tokens_seen": 30, "data": {},
    "model": {"class_path": "pipeline.models.recurrent.LSTMConfig", "init_args": {"vocab_size": 8, "layers": 1, "width": 4}},
}  # fmt: skip


def write(folder: Path, ranks: list[list[Piece]], about: dict[str, Any] = ABOUT) -> Path:
    """A checkpoint of these pieces, rank by rank."""
    writers = [FolderWriter(folder, rank, len(ranks)) for rank in range(len(ranks))]
    writers[0].begin()
    for rank in reversed(range(len(ranks))):
        first = rank == 0
        writers[rank].write(ranks[rank], {"loops": 1} if first else None, about if first else None)
    return folder


def pieces_of(tensor: torch.Tensor, name: str, cuts: list[int], kind: str = WEIGHTS) -> list[Piece]:
    flat = tensor.reshape(-1)
    edges = [0, *cuts, flat.numel()]
    return [Piece(kind, name, tuple(tensor.shape), a, flat[a:b]) for a, b in pairwise(edges)]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_cut_anywhere_over_any_ranks_read_back_exactly(seed, tmp_path):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    ranks: list[list[Piece]] = [[] for _ in range(chance.randint(1, 5))]
    for number in range(chance.randint(1, 6)):
        shape = [chance.randint(1, 7) for _ in range(chance.randint(1, 4))]
        dtype = chance.choice([torch.float32, torch.bfloat16, torch.float64, torch.int64])
        for kind in (WEIGHTS, "exp_avg"):
            tensor = (torch.randn(shape) * 100).to(dtype)
            tensors[kind, f"layer.{number}"] = tensor
            cuts = sorted(chance.randint(0, tensor.numel()) for _ in range(chance.randint(0, 4)))
            for piece in {piece.key: piece for piece in pieces_of(tensor, f"layer.{number}", cuts, kind)}.values():
                chance.choice(ranks).append(piece)
            if chance.random() < 0.3:  # Two ranks may have stored the same range, or ranges that overlap.
                first = chance.randrange(tensor.numel())
                overlap = Piece(kind, f"layer.{number}", tuple(shape), first, tensor.reshape(-1)[first:])
                if all(overlap.key != piece.key for piece in ranks[-1]):
                    ranks[-1].append(overlap)
    state = StateFolder(write(tmp_path / "step", ranks))
    state.verify()
    assert set(state.index) == set(tensors)
    for (kind, name), tensor in tensors.items():
        assert state.dtype(kind, name) == tensor.dtype
        assert torch.equal(state.tensor(kind, name), tensor)
        for _ in range(20):
            start = chance.randint(0, tensor.numel())
            stop = chance.randint(start, tensor.numel())
            assert state.read(kind, name, start, stop).tolist() == tensor.reshape(-1)[start:stop].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_shares_of_a_piece_are_all_of_it_once(ranks):
    piece = Piece(WEIGHTS, "w", (5, 13), 0, torch.arange(65.0))
    shares = [piece.share(rank, ranks) for rank in range(ranks)]
    assert torch.cat([share.values for share in shares]).tolist() == piece.values.tolist()
    assert [share.start for share in shares[1:]] == [share.stop for share in shares[:-1]]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    table, bias = torch.randn(40, 8), torch.randn(8)
    first, second, third = pieces_of(table, "table", [96, 224])
    return write(tmp_path / "step-00000003", [[first, *pieces_of(bias, "bias", [])], [second], [third]])


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.safetensors", "training.pt"])
def test_a_flipped_bit_anywhere_is_found_and_its_file_named(name, checkpoint):
    whole = (checkpoint / name).read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 25):
        (checkpoint / name).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(InputError, match=name):
            StateFolder(checkpoint).verify()
    (checkpoint / name).write_bytes(whole)
    StateFolder(checkpoint).verify()


@pytest.mark.parametrize("name", ["rank-00002.safetensors", "training.pt"])
def test_a_missing_and_a_truncated_file_are_refused_by_name_before_they_are_used(name, checkpoint):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=rf"{name} has {len(content) - 1} bytes instead of {len(content)}"):
        StateFolder(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        StateFolder(checkpoint)


@pytest.mark.parametrize("gap", [0, 1, 2], ids=["start", "middle", "end"])
def test_a_gap_in_a_tensor_is_found_and_the_tensor_named(gap, tmp_path):
    pieces = pieces_of(torch.randn(10, 10), "table", [30, 31])
    if gap == 2:  # The tensor's end, and not a file of nothing.
        pieces = pieces_of(torch.randn(10, 10), "table", [99])
    pieces.pop(min(gap, len(pieces) - 1))
    state = StateFolder(write(tmp_path / "step", [pieces]))
    with pytest.raises(InputError, match="lacks a part of weights of table"):
        state.verify()
    with pytest.raises(InputError, match="lacks a part of weights of table"):
        state.tensor(WEIGHTS, "table")


def test_a_folder_without_a_manifest_or_of_another_format_is_refused(checkpoint):
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"format": 3}))
    with pytest.raises(InputError, match="format 3, this version reads 2"):
        StateFolder(checkpoint)
    (checkpoint / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        StateFolder(checkpoint)
    (checkpoint / MANIFEST).unlink()
    with pytest.raises(InputError, match="is not a checkpoint"):
        StateFolder(checkpoint)


def save_for_ever(folder: Path, first: int) -> None:
    """Overwrite one checkpoint again and again, each time with a number that is 1 higher."""
    for version in range(first, 10**6):
        values = torch.full((3, 50_000), float(version))
        write(folder / "step", [[piece] for piece in pieces_of(values, "table", [60_000])], ABOUT | {"step": version})


@pytest.mark.slow
def test_kills_at_random_moments_of_a_save_leave_a_whole_checkpoint():
    chance, process_context = random.Random(0), multiprocessing.get_context("fork")
    folder = Path(f"/dev/shm/{time.time_ns()}") if Path("/dev/shm").is_dir() else Path(f".kills-{time.time_ns()}")
    folder.mkdir()
    try:
        write(folder / "step", [pieces_of(torch.zeros(3, 50_000), "table", [])], ABOUT | {"step": 0})
        before, lost_in_between = 0, 0
        for _ in range(60):
            process = process_context.Process(target=save_for_ever, args=(folder, before + 1))
            process.start()
            time.sleep(chance.uniform(0.02, 0.1))
            process.kill()
            process.join()
            lost_in_between += not (folder / "step").exists()
            clear_leftovers(folder)
            assert [path.name for path in folder.iterdir()] == ["step"]
            state = StateFolder(folder / "step")
            state.verify()
            version = state.record["step"]
            assert version >= before
            assert state.tensor(WEIGHTS, "table").unique().tolist() == [float(version)]
            before = version
        assert before > 60  # Saves went on, and were killed at all sorts of moments.
    finally:
        shutil.rmtree(folder)


def test_a_kill_between_the_two_renames_of_a_replacement_is_mended(checkpoint):
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old"))
    shutil.copytree(
        checkpoint.with_name(f".{checkpoint.name}.old"), checkpoint.with_name(f".{checkpoint.name}.partial")
    )
    clear_leftovers(checkpoint.parent)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    StateFolder(checkpoint).verify()


def test_a_rank_that_cannot_write_leaves_the_old_checkpoint_and_says_which_it_was(checkpoint, monkeypatch):
    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    writers = [FolderWriter(checkpoint, rank, 2) for rank in range(2)]
    writers[0].begin()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(state_files, "write_pieces", full_disk)
        writers[1].write([], None, None)
    with pytest.raises(OSError, match="rank 1 did not write its part .* No space left"):
        writers[0].write(pieces_of(torch.ones(3), "new", []), {}, ABOUT)
    state = StateFolder(checkpoint)
    state.verify()
    assert sorted(state.names(WEIGHTS)) == ["bias", "table"]


def train(folder: Path, tokens: Path, **checkpoint: Any) -> Path:
    """Twelve steps of a small LSTM, saved every third; returns the folder of its checkpoints."""
    batch = 512
    config = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
        "model": {
            "architecture": {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 1, "width": 32}},
            "ema_half_life_tokens": 2000,
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": batch, "micro_batch": 16, "total_tokens": 12 * batch,
            "validation_tokens": 500,
        },
        "checkpoint": {"every_tokens": 3 * batch, "keep_last": 9, **checkpoint},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    folder.mkdir()
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "given.yaml")]) == 0
    return folder / "checkpoints"


def test_an_asynchronous_save_is_byte_for_byte_the_synchronous_one_while_training_goes_on(
    tokens_folder, tmp_path, monkeypatch
):
    expected = train(tmp_path / "synchronous", tokens_folder, asynchronous=False)
    original, metrics, moved_on = state_files.write_pieces, tmp_path / "asynchronous" / "metrics.csv", []

    def written_late(path: Path, *arguments: Any) -> dict[str, Any]:
        """Write only when training has gone on for two steps, or cannot for the next save waits for this."""
        step = int(path.parent.name.split("-")[1].split(".")[0])
        deadline = time.monotonic() + (2 if step < 12 else 0)
        while time.monotonic() < deadline and f"\n{step + 2}," not in metrics.read_text():
            time.sleep(0.005)
        moved_on.append(f"\n{step + 2}," in metrics.read_text())
        return original(path, *arguments)

    monkeypatch.setattr(state_files, "write_pieces", written_late)
    found = train(tmp_path / "asynchronous", tokens_folder, asynchronous=True)
    assert moved_on == [True, True, True, False]
    steps = [f"step-{step:08d}" for step in (3, 6, 9, 12)]
    assert sorted(path.name for path in found.glob("step-*")) == steps
    for name in steps:
        one, other = StateFolder(expected / name), StateFolder(found / name)
        assert {"ema", "exp_avg"} < one.kinds
        for file in one.manifest["files"]:
            if file.endswith(".safetensors"):
                assert (one.path / file).read_bytes() == (other.path / file).read_bytes()
        mine, theirs = other.training(), one.training()
        for key in ("loops", "optimizer_scalars", "pipeline", "global_step"):
            assert mine[key] == theirs[key]


def test_the_first_rank_may_rename_the_folder_the_moment_the_last_one_is_done(tmp_path, monkeypatch):
    def late(path: Path) -> None:
        if threading.current_thread().name.startswith("late"):
            time.sleep(0.3)
        os.close(os.open(path, os.O_RDONLY))

    # The other rank's disk is slow to answer: it must not look into the folder once it has said that it is done.
    monkeypatch.setattr("data_prep.files.sync", late)
    writers = [FolderWriter(tmp_path / "step", rank, 2) for rank in range(2)]
    writers[0].begin()
    pieces = [[Piece(WEIGHTS, "w", (4,), 2 * rank, torch.ones(2))] for rank in range(2)]
    with ThreadPoolExecutor(1, "late") as other:
        done = other.submit(writers[1].write, pieces[1], None, None)
        writers[0].write(pieces[0], {}, {"strategy": "none"})
        done.result()
    StateFolder(tmp_path / "step").verify()
