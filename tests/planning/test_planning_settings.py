"""A plan reads a run's settings as `fit` does: for every shipped configuration, and with the same defaults."""

import inspect
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import pytest
import yaml

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.checkpoint import build_config
from pipeline.cli import main
from pipeline.data import TokenDataModule
from pipeline.planning.settings import CheckpointSettings, DataSettings, ModelSettings, read_settings
from pipeline.task import LanguageModelling

ROOT = Path(__file__).parent.parent.parent / "configs"
RUNS = {
    "demo gpt": ["demo/gpt"],
    "demo lstm": ["demo/lstm"],
    "ptb": ["run/ptb_small_lstm"],
    "python mixture": ["model/gpt_14m", "run/python_mixture"],
    "python, offloaded": ["model/llama_7b", "run/python", "strategy/zero3_offload"],
    "translation": ["model/seq2seq_lstm_luong", "run/translation"],
    "phonemes": ["model/seq2seq_transformer_tiny", "run/phonemes"],
    "sentiment": ["model/classifier_transformer_tiny", "run/sentiment"],
    "lecture": ["lectures/run", "lectures/irnn"],
}
MORE = {
    "a class over another": [
        "--config", str(ROOT / "demo/gpt.yaml"), "--model.architecture=LSTMConfig", "--model.architecture.layers=3",
        "--model.architecture.width=32", "--model.optimizer=SGD", "--model.optimizer.learning_rate=0.5",
    ],
    "a value apart from its option": ["--config", str(ROOT / "demo/gpt.yaml"), "--data.micro_batch", "2", "--trainer.devices", "2"],
}  # fmt: skip


def files(names: list[str]) -> list[str]:
    return [part for name in names for part in ("--config", str(ROOT / f"{name}.yaml"))]


def fits(options: list[str], capsys: pytest.CaptureFixture) -> dict:
    with pytest.raises(SystemExit) as done:
        main(["fit", *options, "--print_config"])
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    return yaml.safe_load(captured.out)


@pytest.mark.parametrize("options", [*map(files, RUNS.values()), *MORE.values()], ids=[*RUNS, *MORE])
def test_a_plan_has_the_settings_of_fit(options, capsys):
    expected, settings = fits(options, capsys), read_settings(options)
    assert settings.model.architecture == build_config(expected["model"]["architecture"])
    optimizer = expected["model"]["optimizer"]
    assert type(settings.model.optimizer).__name__ == optimizer["class_path"].rpartition(".")[2]
    assert asdict(settings.model.optimizer) == optimizer["init_args"]
    for name in ("checkpoint_blocks", "ema_half_life_tokens", "label_smoothing", "z_loss", "compile"):
        assert getattr(settings.model, name) == expected["model"][name]
    assert asdict(settings.data) | {"allow_changes": None} == expected["data"] | {"allow_changes": None}
    assert asdict(settings.checkpoint) == expected["checkpoint"]
    trainer = expected["trainer"]
    assert str(settings.run_directory) == trainer["default_root_dir"]
    assert settings.nodes == trainer["num_nodes"]
    assert settings.devices == (None if trainer["devices"] == "auto" else int(trainer["devices"]))
    chosen = trainer["strategy"]
    if isinstance(chosen, dict):
        for name, value in chosen["init_args"].items():
            assert getattr(settings.strategy, name, value) == value


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(ModelSettings, LanguageModelling), (DataSettings, TokenDataModule), (CheckpointSettings, Checkpoints)],
)
def test_the_options_and_defaults_of_a_section_are_those_of_fit(ours, theirs):
    parameters = inspect.signature(theirs.__init__).parameters
    expected = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert {field.name for field in fields(ours)} == set(expected)
    for field in fields(ours):
        # What `fit` requires is missing from the preset of a model, which can be planned too.
        if expected[field.name] is not inspect.Parameter.empty:
            assert field.default == expected[field.name], field.name
        else:
            assert field.default in (None, MISSING)


def test_a_preset_alone_can_be_read():
    settings = read_settings(files(["model/gpt3_175b"]))
    assert settings.data.total_tokens is None
    assert settings.model.architecture.vocab_size == 50257
