"""Which checkpoints stay: the newest, the best, those that the policy keeps for good; and no save that the disk has no room for."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.cli import main
from pipeline.state_files import StateFolder, point

BATCH = 512


def fit(folder: Path, tokens: Path, *options: str, steps: int = 20) -> int:
    config = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False,
        },
        "model": {
            "architecture": {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 1, "width": 16}},
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 16, "total_tokens": steps * BATCH,
            "validation_tokens": 500,
        },
        "wandb": {"mode": "disabled"},
        "ckpt_path": "last",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(folder / "given.yaml"), *options])


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*"))


def name_of(folder: Path, name: str) -> int:
    return int((folder / "checkpoints" / f"{name}.ckpt").resolve().name.split("-")[1])


# What the command says -> the steps that stay of 20, whose last is also the best.
POLICIES = {
    "the newest two": ([f"--checkpoint.every_tokens={2 * BATCH}"], [18, 20]),
    "the newest": ([f"--checkpoint.every_tokens={2 * BATCH}", "--checkpoint.keep_last=1"], [20]),
    "three": ([f"--checkpoint.every_tokens={2 * BATCH}", "--checkpoint.keep_last=3"], [16, 18, 20]),
    "every so many tokens": (
        [f"--checkpoint.every_tokens={2 * BATCH}", f"--checkpoint.keep_every_tokens={6 * BATCH}"], [6, 12, 18, 20],
    ),
    "the early ones": (["--checkpoint.keep_early=true"], [1, 2, 4, 8, 16, 20]),
    "the early ones and some": (
        ["--checkpoint.keep_early=true", f"--checkpoint.keep_every_tokens={5 * BATCH}"], [1, 2, 4, 5, 8, 10, 15, 16, 20],
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_keeps_what_its_policy_says(policy, tokens_folder, tmp_path):
    options, kept = POLICIES[policy]
    assert fit(tmp_path / "run", tokens_folder, *options) == 0
    assert steps_of(tmp_path / "run") == kept
    assert (name_of(tmp_path / "run", "last"), name_of(tmp_path / "run", "best")) == (20, 20)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        StateFolder(path).verify()


def test_what_stays_for_good_stays_when_the_run_is_continued(tokens_folder, tmp_path):
    policy = ["--checkpoint.keep_early=true", f"--checkpoint.keep_every_tokens={6 * BATCH}"]
    assert fit(tmp_path / "run", tokens_folder, *policy, steps=7) == 0
    assert steps_of(tmp_path / "run") == [1, 2, 4, 6, 7]
    # The continued run asks for nothing of the kind, yet what was kept is kept.
    assert fit(tmp_path / "run", tokens_folder, steps=14) == 0
    assert steps_of(tmp_path / "run") == [1, 2, 4, 6, 7, 14]


def test_the_best_stays_though_newer_ones_are_worse(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (5, 10, 15, 20):
        (folder / f"step-{step:08d}").mkdir(parents=True)
    point(folder / "best.ckpt", folder / "step-00000005")
    point(folder / "last.ckpt", folder / "step-00000020")
    Checkpoints(keep_last=2).remove_others(folder / "step-00000020", kept=[])
    assert steps_of(tmp_path) == [5, 15, 20]


def test_a_continuation_that_goes_back_leaves_nothing_of_the_way_that_was_given_up(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (5, 10, 15, 20):
        (folder / f"step-{step:08d}").mkdir(parents=True)
    point(folder / "last.ckpt", folder / "step-00000010")
    Checkpoints(keep_last=2).remove_others(folder / "step-00000010", kept=[])
    assert steps_of(tmp_path) == [5, 10]


def test_a_save_that_would_pass_the_budget_is_refused_and_what_is_there_stays(tokens_folder, tmp_path, capsys):
    run, options = tmp_path / "run", [f"--checkpoint.every_tokens={5 * BATCH}", "--checkpoint.keep_last=9"]
    size = 3 * 4 * (512 * 16 + 512 + 2 * (4 * 16 * 16) + 2 * 64)  # weights and two moments, fp32
    status = fit(run, tokens_folder, *options, f"--checkpoint.disk_budget_gb={2.5 * size / 1e9}")
    assert status == 2
    message = capsys.readouterr().err
    assert "The checkpoint of step 15 was not written" in message
    assert "disk_budget_gb" in message
    assert steps_of(run) == [5, 10]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step-00000005", "step-00000010"]
    StateFolder(run / "checkpoints" / "last.ckpt").verify()
    # With room, the same command goes on.
    assert fit(run, tokens_folder, *options) == 0
    assert name_of(run, "last") == 20


def test_a_save_that_would_fill_the_disk_is_refused(tokens_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000))
    assert fit(tmp_path / "run", tokens_folder) == 2
    assert "the disk has 0.00 GB free: make room" in capsys.readouterr().err
    assert steps_of(tmp_path / "run") == []


@pytest.mark.parametrize("option", ["every_tokens=0", "keep_last=0", "keep_every_tokens=-1", "disk_budget_gb=0"])
def test_a_policy_without_a_meaning_is_refused_with_a_sentence(option, tokens_folder, tmp_path, capsys):
    assert fit(tmp_path / "run", tokens_folder, f"--checkpoint.{option}") == 2
    assert f"checkpoint.{option.split('=')[0]} is" in capsys.readouterr().err
