"""Every YAML that ships is read by the command that it is for; every model in it is built, on the meta device."""

from pathlib import Path

import pytest
import torch
import yaml

from data_prep.cli import main as data_prep
from pipeline.checkpoint import build_model

ROOT = Path(__file__).parent.parent
MODELS = sorted((ROOT / "configs").glob("model/*.yaml"))
DEMO = [ROOT / "configs/demo/gpt.yaml", ROOT / "configs/demo/lstm.yaml"]
DATA = [ROOT / "configs/demo/data.yaml", *sorted((ROOT / "configs").glob("data/*.yaml"))]


def resolved(capsys: pytest.CaptureFixture, *configs: Path) -> dict:
    """What `fit --print_config` makes of these files."""
    from pipeline.cli import main

    options = [option for config in configs for option in ("--config", str(config))]
    with pytest.raises(SystemExit) as done:
        main(["fit", *options, "--print_config"])
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    return yaml.safe_load(captured.out)


@pytest.mark.parametrize("path", DEMO, ids=lambda path: path.stem)
def test_the_demo_models_are_of_like_size_and_fit_their_shards(path, capsys):
    config = resolved(capsys, path)
    with torch.device("meta"):
        model = build_model(config["model"]["architecture"])
    assert 2.6e6 < model.parameter_counts()["total"] < 2.8e6
    shards = yaml.safe_load(DATA[0].read_text())
    assert config["model"]["architecture"]["init_args"]["vocab_size"] == shards["tokenizer"]["vocab_size"]
    assert config["data"]["path"] == f"{shards['output']}/tokens"


@pytest.mark.parametrize("run", sorted((ROOT / "configs").glob("run/*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_preset_and_a_run_make_a_run(model, run, capsys):
    config = resolved(capsys, model, run)
    with torch.device("meta"):
        built = build_model(config["model"]["architecture"])
    assert built.flops_per_token(config["data"]["context"]) > 6 * built.parameter_counts()["non_embedding"]
    data = config["data"]
    assert data["batch_tokens"] % (data["context"] * data["micro_batch"]) == 0


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_corpus_config_is_read(path, capsys):
    with pytest.raises(SystemExit) as done:
        data_prep(["run", "--config", str(path), "--print_config"])
    captured = capsys.readouterr()
    assert not done.value.code, captured.err
    assert yaml.safe_load(captured.out)["output"].startswith("data/")
