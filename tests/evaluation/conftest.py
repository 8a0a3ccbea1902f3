"""Tiny models of both families, a tokenizer, a corpus of documents and a run: tests of evaluation take seconds."""

from pathlib import Path
from pydoc_data.topics import topics

import pyarrow
import pyarrow.parquet
import pytest
import torch

from data_prep.files import write_json
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import RECORD_KEY, describe_model
from pipeline.models.base import LanguageModel
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.transformer import TransformerConfig

CONTEXT = 48


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(list(topics.values())[:20], vocab_size=400)


@pytest.fixture(scope="session")
def gpt(tokenizer) -> LanguageModel:
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, context=CONTEXT, layers=2, width=32, heads=4)
    return spread_out(config.build())


@pytest.fixture(scope="session")
def lstm(tokenizer) -> LanguageModel:
    return spread_out(LSTMConfig(vocab_size=tokenizer.vocab_size, layers=1, width=32).build())


def spread_out(model: LanguageModel) -> LanguageModel:
    """Untrained logits are nearly equal; larger weights make each prediction differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


@pytest.fixture(params=["gpt", "lstm"])
def model(request) -> LanguageModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def documents(tmp_path_factory) -> Path:
    """The `split` folder of a prepared corpus, from the documentation inside the interpreter."""
    folder = tmp_path_factory.mktemp("data") / "split"
    for i, part in enumerate(("train", "validation", "test")):
        texts = list(topics.values())[i::3]
        (folder / part).mkdir(parents=True)
        table = {"id": [str(n) for n in range(len(texts))], "text": texts, "source": ["topics"] * len(texts)}
        pyarrow.parquet.write_table(pyarrow.table(table), folder / part / "00000.parquet")
    return folder


@pytest.fixture
def run_directory(tmp_path, gpt, tokenizer, documents) -> Path:
    """A run as `fit` leaves it, of an untrained model, on a corpus whose documents are at hand."""
    data = {"path": str(documents.parent / "tokens"), "fingerprint": "d" * 64, "tokenizer": tokenizer.fingerprint}
    folder = tmp_path / "runs" / "tiny"
    (folder / "checkpoints").mkdir(parents=True)
    tokenizer.save(folder)
    write_json(folder / "run.json", {"format": 1, "name": "tiny", "data": data})
    record = {"model": describe_model(gpt.config), "data": {**data, "context": CONTEXT}, "step": 7, "tokens_seen": 700}
    weights = {f"model.{name}": value for name, value in gpt.state_dict().items()}
    torch.save({RECORD_KEY: record, "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
    return folder
