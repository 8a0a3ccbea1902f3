"""The texts that are measured on: the documentation inside Python, which every machine has, and files of the user."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from data_prep import document
from data_prep.bench.options import BenchOptions
from data_prep.configuration import DataConfig
from data_prep.document import text_buffer
from data_prep.files import InputError
from data_prep.python_sources import PythonDocs
from data_prep.reading import open_bytes
from data_prep.run import run

MOST_BYTES = 2**28
"""A corpus is held in memory: of a larger file the first documents are taken."""


@dataclass(frozen=True)
class Corpus:
    """Documents of one kind, as they are."""

    name: str
    ids: pa.StringArray
    texts: pa.StringArray

    @property
    def bytes(self) -> int:
        return len(text_buffer(self.texts))

    def sample(self, size: float) -> "Corpus":
        """Documents taken evenly over the corpus, of about so many bytes together."""
        if size >= self.bytes:
            return self
        step = self.bytes / size
        chosen = pa.array(np.unique((np.arange(int(len(self.texts) / step) + 1) * step).astype(np.int64)))
        chosen = chosen.filter(pa.array(chosen.to_numpy() < len(self.texts)))
        return Corpus(self.name, self.ids.take(chosen), self.texts.take(chosen))


def read_corpora(options: BenchOptions, folder: Path, console: Console) -> list[Corpus]:
    """The Python documentation, collected below `folder`, unless packages are given as none; and each file."""
    corpora = [] if options.packages == () else [python_documentation(options, folder, console)]
    corpora += [read_file(path) for path in options.corpus]
    names = [corpus.name for corpus in corpora]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two corpora would be called {name!r}: give files of different names.")
    return corpora


def python_documentation(options: BenchOptions, folder: Path, console: Console) -> Corpus:
    name = "python_docs"
    source = PythonDocs() if options.packages is None else PythonDocs(packages=options.packages)
    run(DataConfig(str(folder), {name: source}, workers=options.workers), "collect", console)
    table = pa.Table.from_batches(document.read(folder / "documents" / name, name)).combine_chunks()
    return Corpus(name, table["id"].chunk(0), table["text"].chunk(0))


def read_file(path: Path) -> Corpus:
    """Documents between two blank lines or more; where there are none, between blank lines."""
    with open_bytes(path) as stream:
        content = stream.read(MOST_BYTES + 1)
    try:
        # Of a file that is cut here, the last character may be half.
        text = content[:MOST_BYTES].decode(errors="ignore" if len(content) > MOST_BYTES else "strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first.") from None
    text = text.replace("\r\n", "\n")
    for blank_lines in (r"\n{3,}", r"\n{2,}"):
        texts = pa.array([each for each in re.split(blank_lines, text) if each.strip()], pa.string())
        if len(texts) > 1:
            break
    if not len(texts):
        raise InputError(f"{path} holds no text: give another file.")
    name = re.sub(r"[^0-9A-Za-z_-]+", "_", path.name.split(".")[0])
    return Corpus(name, pa.array([f"{name}-{k}" for k in range(len(texts))]), texts)
