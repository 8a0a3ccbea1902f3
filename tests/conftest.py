"""A small corpus that every machine has, as shards, and ways to run the command line under test."""

import pydoc_data.topics
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from data_prep.shards import Manifest, ShardWriter
from data_prep.tokenizer import Tokenizer

VOCABULARY = 512
torch.set_num_threads(1)  # The models under test are too small to share.


def write_corpus(folder: Path, texts: dict[str, list], vocab_size: int = VOCABULARY) -> Path:
    """Train a tokenizer on the train texts and write every split's shards; a document is a text or a pair. Returns the folder."""
    sides = {split: [(d,) if isinstance(d, str) else d for d in documents] for split, documents in texts.items()}
    tokenizer = Tokenizer.train([text for document in sides["train"] for text in document], vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    splits, each = {}, len(sides["train"][0])
    for split, documents in sides.items():
        rows = [np.append(ids, tokenizer.end_of_text) for ids in tokenizer.encode_batch(list(chain(*documents)))]
        with ShardWriter(folder, split, "topics", "uint16", 20_000, each) as writer:
            sizes = np.array([sum(len(text.encode()) for text in document) for document in documents])
            writer.add(np.concatenate(rows), np.array([len(row) for row in rows]), sizes)
        splits[split] = tuple(writer.shards)
    tokenizer.save(folder)
    source = {"name": "topics", "kind": "test", "fingerprint": "0" * 64}
    Manifest(
        folder, "uint16", tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, [source], splits, each
    ).save()
    return folder


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100,000 tokens of Python's own help topics in three splits."""
    topics = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    texts = {"train": topics[6:60], "validation": topics[:3], "test": topics[3:6]}
    return write_corpus(tmp_path_factory.mktemp("corpus") / "tokens", texts)


def words_of_topics() -> list[str]:
    return " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)[6:30]).split()


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 pairs: three to eight words, and the same words in reverse."""
    words, random = words_of_topics(), Random(0)
    sources = [[random.choice(words) for _ in range(random.randint(3, 8))] for _ in range(1200)]
    pairs = [(" ".join(source), " ".join(source[::-1])) for source in sources]
    texts = {"train": pairs[:1000], "validation": pairs[1000:1100], "test": pairs[1100:]}
    return write_corpus(tmp_path_factory.mktemp("pairs") / "tokens", texts)


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 texts of three to eight words with the label that says whether one of them is `the`."""
    words, random = [word for word in words_of_topics() if word != "the"], Random(0)
    rows = []
    for number in range(1200):
        text = [random.choice(words) for _ in range(random.randint(3, 8))]
        if number % 2:
            text[random.randrange(len(text))] = "the"
        rows.append((" ".join(text), "with" if number % 2 else "without"))
    texts = {"train": rows[:1000], "validation": rows[1000:1100], "test": rows[1100:]}
    return write_corpus(tmp_path_factory.mktemp("labelled") / "tokens", texts)
