"""A damaged checkpoint is kept aside, and training goes on from the newest that is whole; never from nothing without a word."""

import csv
import errno
import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import BATCH, LSTM, write_config

from pipeline import state_files
from pipeline.cli import main
from pipeline.state_files import MANIFEST, StateFolder


def fit(folder: Path, tokens: Path, *options: str, steps: int = 10, **overrides) -> int:
    settings = {
        "trainer__accelerator": "cpu", "trainer__precision": "32-true", "checkpoint__every_tokens": 2 * BATCH, "checkpoint__keep_last": 3,
        "data__total_tokens": steps * BATCH, "data__validate_every_tokens": 100 * BATCH,
    }  # fmt: skip
    config = write_config(folder / "given.yaml", tokens, LSTM, **settings | overrides)
    return main(["fit", "--config", str(config), *(options or ("--ckpt_path", "last"))])


@pytest.fixture(scope="module")
def trained(tokens_folder, tmp_path_factory) -> Path:
    """A run of ten steps with checkpoints of steps 6, 8 and 10, of which the last is also the best."""
    folder = tmp_path_factory.mktemp("trained")
    assert fit(folder, tokens_folder) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    return tmp_path


def checkpoints(folder: Path) -> Path:
    return folder / "run" / "checkpoints"


def names(folder: Path) -> set[str]:
    return {path.name for path in checkpoints(folder).iterdir()}


def target(folder: Path, name: str) -> str:
    return (checkpoints(folder) / f"{name}.ckpt").resolve().name


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "run" / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]


DAMAGE = {
    "a bit of the weights": lambda path: flip(path / "rank-00000.safetensors"),
    "a bit of the counters": lambda path: flip(path / "training.pt"),
    "a file shorter": lambda path: (path / "training.pt").write_bytes((path / "training.pt").read_bytes()[:-9]),
    "a file missing": lambda path: (path / "rank-00000.safetensors").unlink(),
    "no manifest, as a copy that was cut short": lambda path: (path / MANIFEST).unlink(),
    "an unreadable manifest": lambda path: (path / MANIFEST).write_bytes(b"\xff{"),
    "a manifest of something else": lambda path: (path / MANIFEST).write_text("[1]"),
    "a manifest without its files": lambda path: (path / MANIFEST).write_text('{"format": 2}'),
    "gone, a link to nothing": shutil.rmtree,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_of_any_kind_is_passed_over_kept_aside_and_named(what, folder, tokens_folder, capsys, monkeypatch):
    # Larger checkpoints, too, are read in full before training goes on with them.
    monkeypatch.setattr(state_files, "FULL_CHECK_BYTES", 0)
    DAMAGE[what](checkpoints(folder) / "step-00000010")
    # Nothing is left to train: what is asked is only from where it would go on.
    assert fit(folder, tokens_folder, steps=8) == 0
    output = capsys.readouterr().out
    assert "step-00000010 is damaged and was passed over" in output
    assert "going on from step-00000008" in output
    kept = set() if what.startswith("gone") else {"broken-step-00000010"}
    assert names(folder) == {"step-00000006", "step-00000008", "last.ckpt", "best.ckpt"} | kept
    assert (target(folder, "last"), target(folder, "best")) == ("step-00000008", "step-00000008")
    [line] = (folder / "run" / "state" / "broken-checkpoints.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["checkpoint"], noted["used"]) == ("step-00000010", "step-00000008")
    assert noted["aside"] == (next(iter(kept), None))


def test_going_on_from_an_older_checkpoint_ends_as_if_nothing_had_been_damaged(trained, folder, tokens_folder):
    flip(checkpoints(folder) / "step-00000010" / "rank-00000.safetensors")
    flip(checkpoints(folder) / "step-00000008" / "training.pt")
    assert fit(folder, tokens_folder) == 0
    assert losses(folder) == losses(trained)
    assert {"broken-step-00000008", "broken-step-00000010", "step-00000010"} < names(folder)
    one, other = (StateFolder(checkpoints(each) / "step-00000010") for each in (folder, trained))
    assert [one.manifest["files"][name] for name in ("rank-00000.safetensors",)] == [
        other.manifest["files"][name] for name in ("rank-00000.safetensors",)
    ]
    # Damaged again under the same number: the first one stays, too.
    flip(checkpoints(folder) / "step-00000010" / "rank-00000.safetensors")
    assert fit(folder, tokens_folder, steps=8) == 0
    assert {"broken-step-00000010", "broken-step-00000010.1"} < names(folder)


def test_where_none_is_whole_the_run_is_refused_each_time_and_nothing_is_moved(folder, tokens_folder, capsys):
    for path in checkpoints(folder).glob("step-*"):
        flip(path / "training.pt")
    there = names(folder)
    for _ in range(2):
        assert fit(folder, tokens_folder) == 2
        message = capsys.readouterr().err
        assert "No checkpoint of" in message
        assert all(f"step-{step:08d}/training.pt does not match its hash" in message for step in (6, 8, 10))
        assert names(folder) == there
    # Nor does it begin anew when only what was kept aside is there.
    for path in checkpoints(folder).glob("step-*"):
        path.rename(path.with_name(f"broken-{path.name}"))
    (checkpoints(folder) / "last.ckpt").unlink()
    assert fit(folder, tokens_folder) == 2
    assert "start anew with another --trainer.default_root_dir" in capsys.readouterr().err


def test_a_checkpoint_that_was_named_by_its_path_is_refused_not_replaced(folder, tokens_folder, capsys):
    path = checkpoints(folder) / "step-00000010"
    flip(path / "rank-00000.safetensors")
    there = names(folder)
    assert fit(folder, tokens_folder, "--ckpt_path", str(path)) == 2
    assert "does not match its hash" in capsys.readouterr().err
    config = folder / "given.yaml"
    assert main(["validate", "--config", str(config), "--ckpt_path", "last"]) == 2
    assert "does not match its hash" in capsys.readouterr().err
    assert names(folder) == there


def test_what_was_kept_aside_is_not_counted_kept_or_found_again(folder, tokens_folder, capsys):
    flip(checkpoints(folder) / "step-00000010" / "training.pt")
    size = sum(path.stat().st_size for path in (checkpoints(folder) / "step-00000008").iterdir())
    # Room for four and a half: the best, the newest two and the next, beside what is kept aside.
    assert fit(
        folder, tokens_folder, "--ckpt_path", "last", f"--checkpoint.disk_budget_gb={4.5 * size / 1e9}", steps=14,
        checkpoint__keep_last=2,
    ) == 0  # fmt: skip
    assert names(folder) == {"step-00000012", "step-00000014", "broken-step-00000010", "last.ckpt", "best.ckpt"}
    capsys.readouterr()
    assert main(["checkpoint", "verify", str(folder / "run")]) == 0
    assert "broken" not in capsys.readouterr().out


def test_a_kill_before_the_first_name_was_given_loses_nothing(folder, tokens_folder, capsys):
    """Between the renaming of the folder and the link: the folder is whole, and found without its name."""
    for name in ("last.ckpt", "best.ckpt"):
        (checkpoints(folder) / name).unlink()
    assert fit(folder, tokens_folder, steps=10) == 0
    assert "damaged" not in capsys.readouterr().out
    assert target(folder, "last") == "step-00000010"


def test_a_kill_between_the_two_renames_of_a_replacement_is_mended_at_the_next_start(folder, tokens_folder, capsys):
    path = checkpoints(folder) / "step-00000010"
    path.rename(path.with_name(".step-00000010.old"))
    assert fit(folder, tokens_folder, steps=10) == 0
    assert "damaged" not in capsys.readouterr().out
    assert "step-00000010" in names(folder)
    assert target(folder, "last") == "step-00000010"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_disk_that_fills_up_in_the_middle_of_a_save_ends_the_run_with_a_sentence(
    asynchronous, tokens_folder, tmp_path, capsys, monkeypatch
):
    write = state_files.HashedFile.write
    left = [900_000]

    def until_full(self, content):
        left[0] -= len(memoryview(content))
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        write(self, content)

    monkeypatch.setattr(state_files.HashedFile, "write", until_full)
    assert fit(tmp_path, tokens_folder, checkpoint__asynchronous=asynchronous) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: The disk is full, so the checkpoint was not written")
    assert "rank-00000.safetensors" in message
    assert "go on with --ckpt_path last" in message
    assert "Traceback" not in message
    assert target(tmp_path, "last") == "step-00000004"
    StateFolder(checkpoints(tmp_path) / "last.ckpt").verify()
    monkeypatch.undo()
    assert fit(tmp_path, tokens_folder) == 0
    assert target(tmp_path, "last") == "step-00000010"
    assert [step for step, loss, _ in losses(tmp_path) if loss] == [str(step) for step in range(1, 11)]
