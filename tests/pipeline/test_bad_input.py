"""What a user can get wrong ends in one sentence on stderr and exit status 2, never in a traceback."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.tokenizer import Tokenizer
from pipeline.cli import main

CONFIG = {
    "trainer": {"enable_progress_bar": False},
    "model": {
        "architecture": {
            "class_path": "TransformerConfig",
            "init_args": {"vocab_size": 512, "context": 32, "layers": 1, "width": 16, "heads": 2},
        }
    },
    "data": {"context": 32, "batch_tokens": 128, "micro_batch": 4, "total_tokens": 512, "validation_tokens": 500},
    "wandb": {"mode": "disabled"},
}


@pytest.fixture
def config(tokens_folder, tmp_path) -> Path:
    content = yaml.safe_load(yaml.safe_dump(CONFIG))
    content["data"]["path"] = str(tokens_folder)
    content["trainer"]["default_root_dir"] = str(tmp_path / "run")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def refused(capsys):
    """Run a command line that must be refused; return its sentence."""

    def run(*arguments: object) -> str:
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stopped:
            status = stopped.code
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert status == 2, error
        assert len(lines) == 1, error
        assert "Traceback" not in error
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.context", "abc"], "data.context"),
        (["--data.contxt", "32"], "data.context"),
        (["--data.batch_tokens", "100"], "not a whole number of sequences of 32 tokens: 96 is"),
        (["--data.micro_batch", "3"], "make data.micro_batch a divisor of 4"),
        (["--data.total_tokens", "5"], "less than one batch of 128"),
        (["--data.context", "64", "--data.micro_batch", "2"], "longer than the model's context of 32"),
        (["--model.architecture.width", "15"], "width 15 is not divisible by 2 heads"),
        (["--model.architecture.vocab_size", "600"], "vocabulary of 512, the model has 600"),
        (["--model.schedule.final_fraction", "2"], "final_fraction is 2"),
        (["--model.optimizer.learning_rate", "0"], "learning_rate is 0"),
        (["--checkpoint.every_tokens", "0"], "checkpoint.every_tokens is 0"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--ckpt_path", "lost.ckpt"], "lost.ckpt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_impossible_setting_is_refused(config, refused, options, words):
    assert words in refused("fit", "--config", config, *options)
    assert not (config.parent / "run" / "run.json").exists()


def test_a_missing_config_file_is_named(refused):
    assert "nofile.yaml" in refused("fit", "--config", "nofile.yaml")


def test_an_unknown_key_in_a_yaml_is_named_with_its_neighbours(config, refused, tmp_path):
    (tmp_path / "more.yaml").write_text("data: {batch_token: 5}")
    sentence = refused("fit", "--config", config, "--config", tmp_path / "more.yaml")
    assert "data.batch_token'" in sentence
    assert "data.batch_tokens" in sentence


def test_a_yaml_that_is_not_yaml_is_refused(config, refused, tmp_path):
    (tmp_path / "bad.yaml").write_text("data: {path: [")
    assert "bad.yaml" in refused("fit", "--config", tmp_path / "bad.yaml")


def test_a_run_without_a_checkpoint_is_named(config, refused, tmp_path):
    for verb in ("validate", "test", "predict"):
        assert (
            "has no checkpoint" in refused(verb, "--config", config, "--ckpt_path", "last")
            or not (tmp_path / "run").exists()
        )
    (tmp_path / "empty").mkdir()
    for verb in (["generate", "--prompt", "x"], ["evaluate"]):
        assert "has no checkpoint 'best'" in refused(verb[0], "--run", tmp_path / "empty", *verb[1:])
    assert "no run" in refused("report", tmp_path / "empty")
    assert "no run directory" in refused("generate", "--run", tmp_path / "nowhere", "--prompt", "x")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_shard_is_named(config, refused, tokens_folder, tmp_path, damage):
    folder = tmp_path / "tokens"
    shutil.copytree(tokens_folder, folder)
    shard = sorted((folder / "train").glob("*.bin"))[0]
    content = np.fromfile(shard, dtype=np.uint8)
    if damage == "cut":
        content = content[:-10]
    else:
        content[100] ^= 1
    content.tofile(shard)
    assert str(shard) in refused("fit", "--config", config, "--data.path", folder)


def test_a_fresh_fit_never_overwrites_a_run(config, refused):
    assert main(["fit", "--config", str(config)]) == 0
    assert "already holds a run" in refused("fit", "--config", config)
    assert "seed was 0, is 1" in refused("fit", "--config", config, "--ckpt_path", "last", "--data.seed", "1")
    sentence = refused("fit", "--config", config, "--ckpt_path", "last", "--model.architecture.layers", "2")
    assert "layers was 1, is 2" in sentence


def test_a_checkpoint_with_another_tokenizer_is_refused(config, refused, tokens_folder, tmp_path):
    assert main(["fit", "--config", str(config)]) == 0
    Tokenizer.train(["another text"] * 9, 260).save(tmp_path / "run")
    assert "put the run's own tokenizer back" in refused("generate", "--run", tmp_path / "run", "--prompt", "x")


@pytest.mark.parametrize("options", [["--temperature", "-1"], ["--top_p", "2"], ["--top_k", "0"], ["--samples", "0"]])
def test_a_sampling_option_outside_its_range_is_refused(refused, options, tmp_path):
    refused("generate", "--run", tmp_path, "--prompt", "x", *options)


def test_an_unknown_verb_is_answered_with_all_verbs(refused):
    assert "fit, validate" in refused("train")


def test_help_is_instant_and_lists_every_verb():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 2
    for verb in ("fit", "validate", "test", "predict", "evaluate", "generate", "report"):
        assert f"  {verb} " in done.stdout
