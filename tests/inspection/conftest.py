"""Run folders of small untrained models, as `fit` leaves them, on the corpus that every machine has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_prep.files import write_json
from data_prep.shards import Manifest
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import RECORD_KEY, describe_model
from pipeline.models.base import ModelConfig

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, tokens_folder: Path) -> MakeRun:
    """make_run("gpt", config, loss_by_position=..., data=...) -> the run's folder below tmp_path/runs."""
    tokenizer = Tokenizer.load(tokens_folder)

    def make(
        name: str, config: ModelConfig, loss_by_position: list[float] | None = None, data: Path = tokens_folder
    ) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        tokenizer.save(folder)
        torch.manual_seed(1)
        record = {
            "path": str(data),
            "fingerprint": Manifest.load(tokens_folder).fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "context": 64,
        }
        model = {"name": name, "family": config.family, "model": describe_model(config), "data": record}
        write_json(folder / "run.json", {"format": 1, **model})
        if loss_by_position:
            write_json(folder / "validation.json", {"loss": 1.0, "loss_by_position": loss_by_position})
        weights = {f"model.{key}": value for key, value in config.build().state_dict().items()}
        about = {"model": describe_model(config), "data": record, "step": 7, "tokens_seen": 700}
        torch.save({RECORD_KEY: about, "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
        return folder

    return make
