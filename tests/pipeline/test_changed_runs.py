"""Mixtures, ramps and context changes through `fit`: exact resume, refusals that say what differs, and changes made on purpose."""

import csv
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from data_prep.shards import Manifest
from data_prep.tokenizer import Tokenizer
from pipeline.batch import MixedWindows
from pipeline.batch_schedule import BatchRamp, BatchSchedule
from pipeline.checkpoint import find_checkpoint, open_state
from pipeline.cli import main

BATCH = 512
DATA = {
    "context": 32, "batch_tokens": BATCH, "micro_batch": 4, "total_tokens": 24 * BATCH, "validation_tokens": 500,
    "mixture": {"odd": {"weight": 0.7}, "even": {"weight": 0.3}},
    "batch_ramp": {"start_tokens": 128, "over_tokens": 3000},
    "context_schedule": {0: 16, 5 * BATCH: 32},
}  # fmt: skip


def with_sources(tokens_folder: Path, folder: Path, names: list[str]) -> Path:
    """The shards of a folder, said to be of these sources in turn."""
    shutil.copytree(tokens_folder, folder)
    manifest = Manifest.load(folder)
    splits = {
        split: tuple(replace(shard, source=names[k % len(names)]) for k, shard in enumerate(shards))
        for split, shards in manifest.splits.items()
    }
    replace(manifest, splits=splits).save()
    return folder


@pytest.fixture(scope="module")
def two_sources(tokens_folder, tmp_path_factory) -> Path:
    return with_sources(tokens_folder, tmp_path_factory.mktemp("mixed") / "tokens", ["odd", "even"])


def write_config(run: Path, tokens: Path, **data) -> Path:
    config = {
        "trainer": {"default_root_dir": str(run), "log_every_n_steps": 1, "enable_progress_bar": False},
        "model": {
            "architecture": {
                "class_path": "TransformerConfig",
                "init_args": {"vocab_size": 512, "context": 64, "layers": 1, "width": 16, "heads": 2, "dropout": 0.1},
            },
            "optimizer": {"learning_rate": 3e-3},
        },
        "data": DATA | {"path": str(tokens)} | data,
        "wandb": {"mode": "disabled"},
        "ckpt_path": "last",
    }
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The positions of all samples that are trained on from here on."""
    positions: list[int] = []
    batch = MixedWindows.batch
    monkeypatch.setattr(MixedWindows, "batch", lambda self, p: positions.extend(p.tolist()) or batch(self, p))
    return positions


def refused(config: Path, capsys: pytest.CaptureFixture, *options: str) -> str:
    """Run `fit`, which must be refused; return its sentence."""
    capsys.readouterr()
    try:
        status = main(["fit", "--config", str(config), *options])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("error: ") == 1
    return error


@pytest.mark.slow
def test_a_mixed_ramped_run_stopped_and_resumed_is_the_same_to_the_last_digit(two_sources, tmp_path, seen):
    assert main(["fit", "--config", str(write_config(tmp_path / "whole", two_sources, prefetch=0))]) == 0
    uninterrupted = seen.copy()
    seen.clear()
    pieces = write_config(tmp_path / "pieces", two_sources, prefetch=0)
    for step in (4, 10, 11, -1):
        assert main(["fit", "--config", str(pieces), "--trainer.max_steps", str(step)]) == 0
    assert seen == uninterrupted == list(range(len(seen)))
    names = ("step", "tokens", "train/loss", "train/grad_norm", "train/learning_rate")
    whole, again = ([[row[name] for name in names] for row in rows(tmp_path / run)] for run in ("whole", "pieces"))
    assert again == whole
    # Batches grew from 4 to 16 sequences of 32 tokens, and the parts of the mixture are accounted for.
    tokens = [0, *(int(row["tokens"]) for row in rows(tmp_path / "whole"))]
    batches = [two - one for one, two in pairwise(tokens)]
    assert batches == sorted(batches)
    assert set(batches) == {128, 256, 384, 512}
    epochs = json.loads((tmp_path / "whole" / "run.json").read_text())["data"]["epochs"]
    assert set(epochs) == {"odd", "even"}
    assert epochs["odd"] > 0


@pytest.fixture(scope="module")
def trained(two_sources, tmp_path_factory) -> Path:
    """A run of 8 steps, and the YAML that goes on with it beside it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", "--config", str(write_config(run, two_sources)), "--trainer.max_steps", "8"]) == 0
    return run


def variant(name: str, two_sources: Path, tmp_path: Path) -> dict:
    """Settings that differ from those of the trained run in one thing."""
    if name == "fingerprint":
        # The same parts of the mixture, but the rest of the corpus has another name.
        folder = with_sources(two_sources, tmp_path / "other", ["odd", "even"])
        manifest = Manifest.load(folder)
        held_out = tuple(replace(shard, source="another") for shard in manifest.splits["validation"])
        replace(manifest, splits=manifest.splits | {"validation": held_out}).save()
        mixture = {
            part: {"weight": weight, "path": str(two_sources), "source": part}
            for part, weight in (("odd", 0.7), ("even", 0.3))
        }
        return {"path": str(folder), "mixture": mixture}
    if name == "tokenizer":
        folder = with_sources(two_sources, tmp_path / "other", ["odd", "even"])
        tokenizer = Tokenizer.train(["quite another text " * 50, *map(str, range(2000))], 512)
        tokenizer.save(folder)
        replace(Manifest.load(folder), tokenizer=tokenizer.fingerprint).save()
        return {"path": str(folder)}
    return {
        "seed": {"seed": 1},
        "mixture": {"mixture": {"odd": {"weight": 0.5}, "even": {"weight": 0.5}}},
        "no mixture": {"mixture": None},
        "batch_tokens": {"batch_tokens": 1024},
        "batch_ramp": {"batch_ramp": None},
        "context": {"context": 64, "context_schedule": None, "micro_batch": 2},
        "context_schedule": {"context_schedule": {0: 32}},
    }[name]


CHANGES = [
    "fingerprint",
    "tokenizer",
    "seed",
    "mixture",
    "no mixture",
    "batch_tokens",
    "batch_ramp",
    "context",
    "context_schedule",
]


@pytest.mark.parametrize("name", CHANGES)
def test_going_on_with_something_else_is_refused_by_its_name(name, trained, two_sources, tmp_path, capsys):
    changes = variant(name, two_sources, tmp_path)
    config = write_config(tmp_path / "run", two_sources, **changes)
    error = refused(config, capsys, "--trainer.default_root_dir", str(trained))
    assert f"{name.removeprefix('no ')} was " in error
    assert "--data.allow_changes" in error


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_allowed_to_change_goes_on_where_the_run_stood(name, trained, two_sources, tmp_path, seen):
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    before = rows(trained)
    changes = variant(name, two_sources, tmp_path)
    allowed = {
        "tokenizer": ["tokenizer", "fingerprint", "mixture"], "no mixture": ["mixture"], "context": ["context", "context_schedule"],
        # Another full batch is another ramp's end, and its steps another divisor.
        "batch_tokens": ["batch_tokens", "batch_ramp"],
    }.get(name, [name])  # fmt: skip
    config = write_config(tmp_path / "run", two_sources, **changes, allow_changes=allowed, prefetch=0)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "14"]) == 0
    # The 8 steps before took 8 + 8 + ... sequences of 16 tokens and then of 32; here is where an unchanged run would go on.
    stood = BatchSchedule(
        BATCH, 32, ramp=BatchRamp(**DATA["batch_ramp"]), contexts=DATA["context_schedule"]
    ).position_at(8)
    assert seen == list(range(stood, stood + len(seen)))
    first = len(seen)
    # Once more, now as the same run: nothing has to be allowed, and the history of sizes is known.
    config = write_config(tmp_path / "run", two_sources, **changes, prefetch=0)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "16"]) == 0
    assert seen == list(range(seen[0], seen[-1] + 1))
    assert len(seen) > first
    after = rows(tmp_path / "run")
    assert [row["train/loss"] for row in after[:8]] == [row["train/loss"] for row in before]
    assert [int(row["step"]) for row in after] == list(range(1, 17))
    tokens = [int(row["tokens"]) for row in after]
    assert tokens[7] == int(before[-1]["tokens"])
    contexts = {"context": 64, "context_schedule": 32}
    if name in contexts:
        assert tokens[13] - tokens[7] == first * contexts[name]
    if name in ("batch_tokens", "batch_ramp"):
        assert tokens[-1] - tokens[-2] == changes.get("batch_tokens", BATCH)
    # What can still be traced to its samples by the settings alone.
    record = open_state(find_checkpoint(tmp_path / "run", "last")).record
    assert record["order_since"] == (8 if {*allowed} & {"fingerprint", "tokenizer", "seed", "mixture"} else 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"mixture": {"odd": {"weight": 1}, "strange": {"weight": 1}}}, "has no tokens to train on: it has even, odd"),
        ({"mixture": {"odd": {"weight": 1}, "even": {"weight": 0}}}, "The weight of even is 0"),
        ({"mixture": {"odd": {"weight": 1}, "even": {"weight": -0.5}}}, "The weight of even is -0.5"),
        ({"mixture": {"odd": {"weight": 1}, "b": {"weight": 1, "source": "odd"}}}, "are the same tokens"),
        ({"mixture": {"odd": {"weight": 1}, "b": {"weight": 1, "path": "nowhere"}}}, "no token manifest at nowhere"),
        ({"batch_ramp": {"start_tokens": 0, "over_tokens": 5}}, "start_tokens is 0"),
        ({"batch_ramp": {"start_tokens": 64, "over_tokens": 5000}}, "make data.micro_batch a divisor of 2"),
        ({"context_schedule": {0: 20, 5: 32}}, "does not divide data.context 32"),
        ({"order": "stream", "mixture": None, "context_schedule": None}, "data.batch_ramp is for data.order shuffled"),
        ({"order": "stream", "batch_ramp": None, "context_schedule": None}, "data.mixture is for data.order shuffled"),
        ({"total_tokens": None, "total_epochs": 1}, "data.total_epochs with data.context_schedule"),
        ({"allow_changes": ["sead"]}, "allow_changes"),
    ],
)  # fmt: skip
def test_a_mixture_or_schedule_that_cannot_be_is_refused(data, words, two_sources, tmp_path, capsys):
    assert words in refused(write_config(tmp_path / "run", two_sources, **data), capsys)
    assert not (tmp_path / "run").exists()


def test_parts_of_another_tokenizer_are_refused(two_sources, tmp_path, capsys):
    folder = variant("tokenizer", two_sources, tmp_path)["path"]
    mixture = {"odd": {"weight": 0.5}, "foreign": {"weight": 0.5, "path": folder}}
    config = write_config(tmp_path / "run", two_sources, mixture=mixture)
    assert "prepare both with one `tokenizer.path`" in refused(config, capsys)


def test_weights_that_do_not_sum_to_one_are_normalised_with_a_notice(two_sources, tmp_path, capsys):
    mixture = {"odd": {"weight": 3.0}, "even": {"weight": 1.0}}
    config = write_config(tmp_path / "run", two_sources, mixture=mixture)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "1"]) == 0
    assert "sum to 4; made to sum to 1: even 0.25, odd 0.75" in capsys.readouterr().out


@pytest.mark.slow
def test_streams_cannot_go_on_with_other_batches(tokens_folder, tmp_path, capsys):
    stream = {"order": "stream", "mixture": None, "batch_ramp": None, "context_schedule": None}
    config = write_config(tmp_path / "run", tokens_folder, **stream)
    content = yaml.safe_load(config.read_text())
    content["model"]["architecture"] = {
        "class_path": "LSTMConfig",
        "init_args": {"vocab_size": 512, "layers": 1, "width": 16},
    }
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "2"]) == 0
    error = refused(config, capsys, "--data.batch_tokens", "1024", "--data.allow_changes", "[batch_tokens]")
    assert "samples of data.order stream depend on the size of batches" in error
