"""Real text and a small corpus for the tests of data preparation."""

import gzip
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.configuration import DataConfig, ShardConfig
from data_prep.run import run
from data_prep.sources import Text
from data_prep.split import SplitConfig
from data_prep.tokenization import TokenizerConfig

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def real_file():
    """The path of a file of the real data; skips where there is none."""

    def find(name: str) -> Path:
        file = REAL_DATA / name
        if not file.is_file():
            pytest.skip(f"real data {name} is not on this machine")
        return file

    return find


@pytest.fixture(scope="session")
def real_text(real_file):
    """Reads a gzipped file of the real data; skips where there is none."""
    return lambda name: gzip.open(real_file(name), "rt", encoding="utf-8", newline="").read()


VERBS = ["opens", "reads", "writes", "closes", "joins", "splits", "counts", "returns"]
NOUNS = ["file", "list", "string", "tensor", "module", "value", "buffer", "index"]


def sentences(number: int) -> str:
    """The text of one document; every number has another one."""
    lines = [
        f"{VERBS[(number + line) % 8]} the {NOUNS[(number // 8 + line) % 8]} {number * line}" for line in range(1, 9)
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of 120 short text files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number:03d}.txt").write_text(sentences(number))
    return folder


@pytest.fixture
def config_for(tmp_path):
    """Makes the configuration of a small corpus; keyword arguments replace its parts."""

    def make(folder: Path, **parts) -> DataConfig:
        defaults = {
            "output": str(tmp_path / "out"),
            "sources": {"text": Text(files=[f"{folder}/*.txt"])},
            "split": SplitConfig(validation=0.1, test=0.1),
            "tokenizer": TokenizerConfig(vocab_size=300),
            "shards": ShardConfig(tokens=2000),
            "workers": 1,
        }
        return DataConfig(**{**defaults, **parts})

    return make


@pytest.fixture
def prepare(capsys):
    """Runs a configuration and returns what it printed."""

    def call(config: DataConfig, last: str = "tokenize") -> str:
        run(config, last, Console(soft_wrap=True, width=200))
        return capsys.readouterr().out

    return call
