"""`checkpoint verify | convert | consolidate`: what they write is read back exactly, and `fit` goes on from it bit for bit."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_prep.files import write_json
from pipeline.checkpoint import build_model, load_run
from pipeline.cli import main
from pipeline.commands import checkpoint as command
from pipeline.optim import AdamW
from pipeline.state_files import AVERAGE, MANIFEST, WEIGHTS, StateFolder

BATCH, STOP, STEPS = 512, 5, 10


def fit(folder: Path, tokens: Path, *options: str) -> list[tuple[str, ...]]:
    """Train; return what must be the same, to the last digit, however the state was cut."""
    config = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
        "model": {
            "architecture": {
                "class_path": "TransformerConfig",
                "init_args": {"vocab_size": 512, "context": 32, "layers": 1, "width": 24, "heads": 2, "dropout": 0.1},
            },
            "ema_half_life_tokens": 2000,
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 8, "total_tokens": STEPS * BATCH,
            "validation_tokens": 500,
        },
        "wandb": {"mode": "disabled"},
        "ckpt_path": "last",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "given.yaml"), *options]) == 0
    with (folder / "metrics.csv").open() as file:
        names = ("step", "train/loss", "train/grad_norm", "train/learning_rate")
        return [tuple(row[name] for name in names) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def whole(tokens_folder, tmp_path_factory) -> tuple[Path, list[tuple[str, ...]]]:
    """A run that was not stopped: its folder, its losses."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, fit(folder, tokens_folder)


@pytest.fixture(scope="module")
def stopped(tokens_folder, tmp_path_factory) -> Path:
    """A run that ended in the middle."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    fit(folder, tokens_folder, f"--trainer.max_steps={STOP}")
    return folder


def same_tensors(one: Path, other: Path) -> bool:
    a, b = StateFolder(one), StateFolder(other)
    return set(a.index) == set(b.index) and all(torch.equal(a.tensor(*key), b.tensor(*key)) for key in a.index)


def same_state(one: Path, other: Path) -> bool:
    a, b = StateFolder(one), StateFolder(other)
    b.verify()
    return same_tensors(one, other) and a.training() == b.training() and a.record == b.record


def checkpoint(*arguments: object) -> int:
    return main(["checkpoint", *map(str, arguments)])


def test_a_checkpoint_cut_into_two_files_and_back_into_one_goes_on_bit_for_bit(
    whole, stopped, tokens_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "RANGE", 100)  # every tensor of more values is read in several ranges
    original = stopped / "checkpoints" / "last.ckpt"
    two, one = tmp_path / "two", tmp_path / "one"
    assert checkpoint("convert", stopped, two, "--ranks", 2) == 0
    assert checkpoint("convert", two, one, "--ranks", 1) == 0
    assert sorted(path.name for path in two.glob("rank-*")) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert same_state(original, two)
    assert same_state(original, one)
    for number, path in enumerate((two, one)):
        run = tmp_path / f"run-{number}"
        shutil.copytree(stopped, run, symlinks=True)
        assert fit(run, tokens_folder, "--ckpt_path", str(path)) == whole[1]
        assert same_tensors(whole[0] / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")


def test_no_more_than_a_range_of_a_tensor_is_in_memory_while_it_is_cut_anew(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RANGE", 64)
    sizes, read = [], StateFolder.read

    def counted(self, kind, name, start, stop):
        sizes.append(stop - start)
        return read(self, kind, name, start, stop)

    monkeypatch.setattr(StateFolder, "read", counted)
    assert checkpoint("convert", stopped, tmp_path / "three", "--ranks", 3) == 0
    assert max(sizes) == 64
    assert sum(sizes) == sum(piece.values.numel() for piece in command.whole_tensors(StateFolder(tmp_path / "three")))


def as_format_1(folder: StateFolder, path: Path) -> None:
    """What this project wrote before checkpoints were folders: Lightning's file, with torch's state of the optimizer."""
    model = build_model(folder.record["model"])
    optimizer = AdamW().build(model)
    numbers = folder.training()["optimizer_scalars"]
    for name, parameter in model.named_parameters():
        parameter.data.copy_(folder.tensor(WEIGHTS, name))
        moments = {kind: folder.tensor(kind, name) for kind in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(numbers[name]["step"]), **moments}
    content = folder.training()
    del content["optimizer_scalars"]
    content["pipeline"] = {"format": 1, **folder.record, "data": dict(folder.record["data"])}
    for new in ("mixture", "batch_ramp", "context_schedule"):
        content["pipeline"]["data"].pop(new)
    content["state_dict"] = {f"model.{name}": values for name, values in model.state_dict().items()}
    torch.save(content | {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": []}, path)


def test_a_single_file_of_an_older_version_becomes_a_folder_that_fit_goes_on_from(
    whole, stopped, tokens_folder, tmp_path
):
    old = tmp_path / "old.ckpt"
    as_format_1(StateFolder(stopped / "checkpoints" / "last.ckpt"), old)
    assert checkpoint("verify", old) == 0
    assert checkpoint("convert", old, tmp_path / "new", "--ranks", 1) == 0
    run = tmp_path / "run"
    shutil.copytree(stopped, run, symlinks=True)
    assert fit(run, tokens_folder, "--ckpt_path", str(tmp_path / "new")) == whole[1]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", [WEIGHTS, AVERAGE])
def test_consolidated_weights_are_those_of_the_checkpoint_and_make_a_model(suffix, kind, stopped, tmp_path):
    output = tmp_path / f"weights{suffix}"
    assert checkpoint("consolidate", stopped, output, *(["--ema"] if kind == AVERAGE else [])) == 0
    expected = dict(StateFolder(stopped / "checkpoints" / "last.ckpt").tensors(kind))
    # Without this project, too.
    stored = (
        load_file(output)
        if suffix == ".safetensors"
        else {k.removeprefix("model."): v for k, v in torch.load(output, weights_only=True)["state_dict"].items()}
    )
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    loaded = load_run(stopped, str(output))
    assert (loaded.step, loaded.tokens) == (STOP, STOP * BATCH)
    assert all(torch.equal(p.data, expected[name]) for name, p in loaded.model.named_parameters())


def test_consolidated_weights_in_bf16_take_half_the_bytes(stopped, tmp_path):
    assert checkpoint("consolidate", stopped, tmp_path / "half.safetensors", "--dtype", "bf16") == 0
    half = load_file(tmp_path / "half.safetensors")
    for name, values in StateFolder(stopped / "checkpoints" / "last.ckpt").tensors(WEIGHTS):
        assert torch.equal(half[name], values.bfloat16())


def test_verify_says_what_a_checkpoint_holds(stopped, capsys):
    assert checkpoint("verify", stopped) == 0
    printed = capsys.readouterr().out
    state = StateFolder(stopped / "checkpoints" / "last.ckpt")
    size = sum(parameter.numel() for parameter in build_model(state.record["model"]).parameters())
    for what in (
        f"all {state.bytes:,} bytes in 2 files",
        "step 5, 2,560 tokens",
        "1 rank under SingleDevice",
        f"{size:,}",
    ):
        assert what in printed
    assert [line.split()[0] for line in printed.splitlines() if "float32" in line] == [
        "weights", "ema", "exp_avg", "exp_avg_sq",
    ]  # fmt: skip


def test_verify_names_a_changed_file_and_a_weight_that_the_model_lacks(stopped, tmp_path, capsys):
    copy = tmp_path / "copy"
    assert checkpoint("convert", stopped, copy, "--ranks", 2) == 0
    file = copy / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint("verify", copy) == 2
    assert "rank-00001.safetensors does not match its hash" in capsys.readouterr().err

    manifest = json.loads((stopped / "checkpoints" / "last.ckpt" / MANIFEST).read_text())
    manifest["model"]["init_args"]["layers"] = 2
    shutil.copytree(stopped / "checkpoints" / "last.ckpt", tmp_path / "deeper")
    write_json(tmp_path / "deeper" / MANIFEST, manifest)
    assert checkpoint("verify", tmp_path / "deeper") == 2
    assert "blocks.1.attention_norm.weight is absent" in capsys.readouterr().err


def test_nothing_is_overwritten_without_force_and_only_checkpoints_with_it(stopped, tmp_path, capsys):
    original, copy = stopped / "checkpoints" / "last.ckpt", tmp_path / "copy"
    assert checkpoint("convert", stopped, copy, "--ranks", 2) == 0
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").touch()
    (tmp_path / "weights.ckpt").mkdir()
    capsys.readouterr()
    for arguments, what in (
        (["convert", stopped, copy, "--ranks", 1], "exists already and is not overwritten"),
        (["convert", stopped, tmp_path / "papers", "--ranks", 1, "--force"], "papers is no checkpoint folder"),
        (["convert", stopped, original, "--ranks", 1, "--force"], "last.ckpt is no checkpoint folder"),
        (["convert", stopped, tmp_path / "new", "--ranks", 0], "--ranks is 0"),
        (["convert", tmp_path / "absent", tmp_path / "new", "--ranks", 1], "There is no"),
        (["convert", tmp_path / "papers", tmp_path / "new", "--ranks", 1], "is not a checkpoint"),
        (["consolidate", stopped, tmp_path / "weights.ckpt", "--force"], "is a folder"),
        (["consolidate", stopped, tmp_path / "weights.bin"], "end it in .safetensors or .ckpt"),
    ):  # fmt: skip
        assert checkpoint(*arguments) == 2
        assert what in capsys.readouterr().err
    assert (tmp_path / "papers" / "thesis.txt").exists()
    assert not (tmp_path / "new").exists()
    # In its own place.
    assert checkpoint("convert", copy, copy, "--ranks", 3, "--force") == 0
    assert same_state(original, copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "papers", "weights.ckpt"]


def test_weights_alone_are_not_cut_for_ranks(stopped, tmp_path, capsys):
    assert checkpoint("consolidate", stopped, tmp_path / "weights.safetensors") == 0
    assert checkpoint("convert", tmp_path / "weights.safetensors", tmp_path / "new", "--ranks", 2) == 2
    assert "has weights alone" in capsys.readouterr().err


def test_a_conversion_that_fails_leaves_nothing_and_what_was_there(stopped, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    assert checkpoint("convert", stopped, copy, "--ranks", 2) == 0

    def broken(self, kind, name, start, stop):
        raise OSError(5, "Input/output error", name)

    monkeypatch.setattr(StateFolder, "read", broken)
    assert checkpoint("convert", stopped, copy, "--ranks", 1, "--force") == 2
    assert "Input/output error" in capsys.readouterr().err
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert same_state(stopped / "checkpoints" / "last.ckpt", copy)
