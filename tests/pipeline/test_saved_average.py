"""The moving average of the weights in a run's checkpoints: it goes on exactly, and models are loaded with it."""

import pytest
import torch
import yaml

from data_prep.files import InputError
from pipeline.checkpoint import find_checkpoint, load_run, open_state, read_weights
from pipeline.cli import main
from pipeline.state_files import AVERAGE


def fit(folder, tokens, *options: str) -> None:
    config = {
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "architecture": {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 1, "width": 32}},
            "optimizer": {"learning_rate": 1e-2},
        },
        "data": {"path": str(tokens), "context": 32, "batch_tokens": 512, "micro_batch": 16, "total_tokens": 5120, "validation_tokens": 500},
        "wandb": {"mode": "disabled"}, "ckpt_path": "last",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "given.yaml"), *options]) == 0


def test_the_average_goes_on_through_a_resume_and_can_be_loaded(tokens_folder, tmp_path):
    average = ["--model.ema_half_life_tokens", "2048"]
    fit(tmp_path / "whole", tokens_folder, *average)
    fit(tmp_path / "parts", tokens_folder, *average, "--trainer.max_steps", "4")
    fit(tmp_path / "parts", tokens_folder, *average)
    whole, parts = (
        read_weights(open_state(find_checkpoint(tmp_path / name, "last")), AVERAGE) for name in ("whole", "parts")
    )
    assert all(torch.equal(values, parts[name]) for name, values in whole.items())

    averaged = load_run(tmp_path / "whole", "last", averaged=True).model
    plain = load_run(tmp_path / "whole", "last").model
    for name, values in averaged.named_parameters():
        assert torch.equal(values, whole[name])
    assert not torch.equal(averaged.get_parameter("head.weight"), plain.get_parameter("head.weight"))


def test_a_run_without_an_average_says_so(tokens_folder, tmp_path):
    fit(tmp_path / "run", tokens_folder, "--trainer.max_steps", "1")
    with pytest.raises(InputError, match="has no ema weights: only a run with model.ema_half_life_tokens"):
        load_run(tmp_path / "run", averaged=True)


def test_a_run_may_begin_to_average_in_its_middle(tokens_folder, tmp_path):
    fit(tmp_path / "run", tokens_folder, "--trainer.max_steps", "4")
    fit(tmp_path / "run", tokens_folder, "--model.ema_half_life_tokens", "2048")
    assert set(read_weights(open_state(find_checkpoint(tmp_path / "run", "last")), AVERAGE)) != set()
