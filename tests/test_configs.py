"""Every YAML that ships is read by the command that it is for; every model in it is built, on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from data_prep.cli import main as data_prep
from pipeline.checkpoint import build_config, build_model
from pipeline.distributed import ZeRO

ROOT = Path(__file__).parent.parent
MODELS = sorted((ROOT / "configs").glob("model/*.yaml"))
DEMO = [ROOT / "configs/demo/gpt.yaml", ROOT / "configs/demo/lstm.yaml"]
DATA = [ROOT / "configs/demo/data.yaml", *sorted((ROOT / "configs").glob("data/*.yaml"))]


def resolved(capsys: pytest.CaptureFixture, *configs: Path | str) -> dict:
    """What `fit --print_config` makes of these files and options."""
    from pipeline.cli import main

    options = [
        part for config in configs for part in (("--config", str(config)) if isinstance(config, Path) else (config,))
    ]
    with pytest.raises(SystemExit) as done:
        main(["fit", *options, "--print_config"])
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    return yaml.safe_load(captured.out)


def resolved_architecture(capsys: pytest.CaptureFixture, model: Path) -> dict:
    """The model of a preset, with data that are never read."""
    needed = {"path": "nowhere", "context": 1, "batch_tokens": 1, "micro_batch": 1, "total_tokens": 1}
    return resolved(capsys, model, *(part for k, v in needed.items() for part in (f"--data.{k}", str(v))))["model"][
        "architecture"
    ]


@pytest.mark.parametrize("path", DEMO, ids=lambda path: path.stem)
def test_the_demo_models_are_of_like_size_and_fit_their_shards(path, capsys):
    config = resolved(capsys, path)
    with torch.device("meta"):
        model = build_model(config["model"]["architecture"])
    assert 2.6e6 < model.parameter_counts()["total"] < 2.8e6
    shards = yaml.safe_load(DATA[0].read_text())
    assert config["model"]["architecture"]["init_args"]["vocab_size"] == shards["tokenizer"]["vocab_size"]
    assert config["data"]["path"] == f"{shards['output']}/tokens"


# A run that names its own model stands alone; another takes the models whose data it is for.
RUNS = sorted((ROOT / "configs").glob("run/*.yaml"))
OF_RUN = {
    "python": lambda family: not family.startswith("seq2seq") and family != "classifier",
    "python_mixture": lambda family: not family.startswith("seq2seq") and family != "classifier",
    "translation": lambda family: family.startswith("seq2seq"),
    "phonemes": lambda family: family.startswith("seq2seq"),
    "sentiment": lambda family: family == "classifier",
}
VOCABULARIES = {"translation": 8192, "phonemes": 101}


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_preset_and_a_run_make_a_run(model, capsys):
    family = build_config(resolved_architecture(capsys, model)).family
    fitting = [run for run in RUNS if OF_RUN.get(run.stem, lambda family: False)(family)]
    assert fitting
    for run in fitting:
        vocabulary = ["--model.architecture.vocab_size", str(size)] if (size := VOCABULARIES.get(run.stem)) else []
        config = resolved(capsys, model, run, *vocabulary)
        with torch.device("meta"):
            built = build_model(config["model"]["architecture"])
        data = config["data"]
        assert built.flops_per_token(data["context"]) > 0.9 * 6 * built.parameter_counts()["non_embedding"]
        assert built.context is None or data["context"] <= built.context
        assert data["batch_tokens"] % (data["context"] * data["micro_batch"]) == 0


@pytest.mark.parametrize("run", [run for run in RUNS if run.stem not in OF_RUN], ids=lambda path: path.stem)
def test_a_run_that_names_its_model_stands_alone(run, capsys):
    config = resolved(capsys, run)
    with torch.device("meta"):
        build_model(config["model"]["architecture"])
    assert config["data"]["batch_tokens"] % (config["data"]["context"] * config["data"]["micro_batch"]) == 0


def test_zarembas_small_lstm_is_the_papers(capsys):
    config = resolved(capsys, ROOT / "configs/run/ptb_small_lstm.yaml")
    corpus = yaml.safe_load((ROOT / "configs/data/ptb.yaml").read_text())
    architecture, data = config["model"]["architecture"]["init_args"], config["data"]
    assert (architecture["layers"], architecture["width"], architecture["dropout"]) == (2, 200, 0.0)
    assert (architecture["init_range"], architecture["forget_bias"], architecture["tied"]) == (0.1, 0.0, False)
    assert (data["order"], data["context"], data["batch_tokens"] // data["context"]) == ("stream", 20, 20)
    assert architecture["vocab_size"] == corpus["tokenizer"]["vocab_size"]
    assert config["model"]["optimizer"]["class_path"].endswith("SGD")


@pytest.mark.parametrize("name", ["rnn", "irnn", "gru", "lstm", "gpt"])
def test_the_lectures_compare_models_of_like_size(name, capsys):
    config = resolved(capsys, ROOT / "configs/lectures/run.yaml", ROOT / f"configs/lectures/{name}.yaml")
    with torch.device("meta"):
        model = build_model(config["model"]["architecture"])
    assert 1.5e6 < model.parameter_counts()["total"] < 1.75e6
    assert config["trainer"]["default_root_dir"] == f"runs/lectures/{name}"


STRATEGIES = sorted((ROOT / "configs").glob("strategy/*.yaml"))


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_a_strategy_preset_goes_with_a_run_and_is_what_its_name_says(path, capsys):
    chosen = resolved(capsys, DEMO[0], path)["trainer"]["strategy"]
    kind, _, where = path.stem.partition("_")
    if not kind.startswith("zero"):
        assert chosen == kind
        return
    settings, device = chosen["init_args"], {"": None, "offload": "cpu", "nvme": "nvme"}[where]
    assert (chosen["class_path"], settings["stage"]) == ("pipeline.distributed.ZeRO", int(kind[-1]))
    assert settings["offload_optimizer"] == device
    assert settings["offload_parameters"] == (device if settings["stage"] == 3 else None)
    ZeRO(**settings)


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_corpus_config_is_read(path, capsys):
    with pytest.raises(SystemExit) as done:
        data_prep(["run", "--config", str(path), "--print_config"])
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    assert yaml.safe_load(captured.out)["output"].startswith("data/")
