"""A small tokenizer, random models of `transformers` and runs of ours: what goes in and out."""

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from data_prep.files import write_json
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import RECORD_KEY, describe_model
from pipeline.models.base import ModelConfig

VOCABULARY, CONTEXT = 400, 64


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(list(topics.values())[:20], vocab_size=VOCABULARY)


def spread_out(model: torch.nn.Module) -> None:
    """Untrained biases are all zero and gains all one, which would hide that two of them are exchanged."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    model.eval()


@pytest.fixture
def make_run(tmp_path, tokenizer) -> Callable[..., Path]:
    """A run as `fit` leaves it, with random weights."""

    def make(config: ModelConfig, data: Path = Path("elsewhere")) -> Path:
        folder = tmp_path / "run"
        (folder / "checkpoints").mkdir(parents=True)
        own = Tokenizer.load(data) if data.exists() else tokenizer
        own.save(folder)
        torch.manual_seed(0)
        model = config.build()
        spread_out(model)
        identity = {"path": str(data), "fingerprint": "d" * 64, "tokenizer": own.fingerprint}
        write_json(folder / "run.json", {"format": 1, "name": "run", "data": identity})
        about = {"model": describe_model(config), "data": {**identity, "context": CONTEXT}, "step": 7, "tokens_seen": 9}
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({RECORD_KEY: about, "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
        return folder

    return make


@pytest.fixture
def make_folder(tmp_path, tokenizer) -> Callable[..., Path]:
    """A Hugging Face folder of a random model, as `transformers` saves it, with a tokenizer."""
    transformers = pytest.importorskip("transformers")

    def make(config: str, *, edit: dict | None = None, max_shard_size: str = "5GB", **settings) -> Path:
        folder = tmp_path / "theirs"
        torch.manual_seed(0)
        made = getattr(transformers, config)(
            vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, **settings
        )
        model = transformers.AutoModelForCausalLM.from_config(made)
        spread_out(model)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (edit or {})))
        return folder

    return make
