"""A small corpus that every machine has, as shards, and ways to run the command line under test."""

import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shards import Manifest, ShardWriter
from data_prep.tokenizer import Tokenizer

VOCABULARY = 512
torch.set_num_threads(1)  # The models under test are too small to share.


def write_corpus(folder: Path, texts: dict[str, list[str]], vocab_size: int = VOCABULARY) -> Path:
    """Train a tokenizer on the train texts and write every split's shards. Returns the folder."""
    tokenizer = Tokenizer.train(texts["train"], vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, documents in texts.items():
        rows = [np.append(ids, tokenizer.end_of_text) for ids in tokenizer.encode_batch(documents)]
        with ShardWriter(folder, split, "topics", "uint16", 20_000) as writer:
            sizes = np.array([len(text.encode()) for text in documents])
            writer.add(np.concatenate(rows), np.array([len(row) for row in rows]), sizes)
        splits[split] = tuple(writer.shards)
    tokenizer.save(folder)
    source = {"name": "topics", "kind": "test", "fingerprint": "0" * 64}
    Manifest(
        folder, "uint16", tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, [source], splits
    ).save()
    return folder


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100,000 tokens of Python's own help topics in three splits."""
    topics = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    texts = {"train": topics[6:60], "validation": topics[:3], "test": topics[3:6]}
    return write_corpus(tmp_path_factory.mktemp("corpus") / "tokens", texts)
