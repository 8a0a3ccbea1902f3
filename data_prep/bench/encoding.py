"""Tokenizing end to end, from Parquet documents to shards, beside the encoders alone on strings in memory.

Each in a process of its own, as each would be used: the first words are new to all, and so is their memory.
"""

import importlib.util
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import tokenizers
from rich.console import Console

from data_prep import document, units
from data_prep.bench.corpora import Corpus
from data_prep.bench.options import BenchOptions
from data_prep.bench.process import run_apart
from data_prep.bench.repeats import Repeats
from data_prep.bench.rounds import Row, fastest, in_a_new_process, timed
from data_prep.configuration import DataConfig
from data_prep.document import DocumentWriter
from data_prep.files import InputError
from data_prep.run import run
from data_prep.sources import Parquet
from data_prep.split import SplitConfig
from data_prep.tokenization import TokenizerConfig
from data_prep.tokenizer import Gigatoken, Tokenizer

TRAINED_ON = 32e6
TEXTS_AT_ONCE = 1000
OF_GIGATOKEN, OF_TOKENIZERS = 0.7, 8
GIGATOKEN_CALLS = {"gigatoken": 1, "gigatoken warm": 3}
"""Which call of a process counts: the first, as a corpus is encoded once; and for comparison the third, which finds its memory at hand."""


def measure(corpus: Corpus, options: BenchOptions, folder: Path) -> list[Row]:
    """Two comparisons a vocabulary. All sides encode the documents of the same Parquet files, ours from there, the others from memory."""
    name, quiet = corpus.name, Console(quiet=True)
    (folder / "texts").mkdir(parents=True)
    with DocumentWriter(folder / "texts", name) as writer:
        for batch in Repeats(corpus).batches(options.megabytes * 1e6):
            writer.add(batch)
    source = Parquet(files=[str(folder / "texts" / "*.parquet")], id_column="id")
    output = folder / "out"
    config = DataConfig(str(output), {name: source}, split=SplitConfig(0, 0), workers=options.workers)
    run(config, "split", quiet)
    documents = output / "split" / "train"
    texts = read_texts(documents, name)
    every = megabytes(texts)
    sample = texts[:: max(1, int(every / options.peer_megabytes))]
    part = megabytes(sample)
    rows = []
    for vocabulary in options.vocabularies:
        tokenizer = trained(corpus, TRAINED_ON, vocabulary)
        path = folder / f"tokenizer-{vocabulary}.json"
        tokenizer.save(path)
        ours = replace(config, tokenizer=TokenizerConfig(path=str(path)))
        run(ours, "tokenizer", quiet)
        works: dict[str, Callable[[], float]] = {
            "ours": lambda ours=ours: end_to_end(ours, folder),
            "tokenizers": lambda tokenizer=tokenizer: in_a_loop(tokenizer, sample),
        }
        missing = "" if importlib.util.find_spec("gigatoken") else "gigatoken is not installed"
        for beside, calls in {} if missing else GIGATOKEN_CALLS.items():
            works[beside] = lambda path=path, calls=calls: in_a_new_process(in_memory, path, documents, name, calls)
        seconds = fastest(works, options.rounds)
        rate, loop = every / seconds["ours"], part / seconds["tokenizers"]
        of = ("tokenize", name, f"{vocabulary} ids")
        for beside in GIGATOKEN_CALLS:
            alone = None if missing else every / seconds[beside]
            rows.append(Row(*of, beside, rate, alone, OF_GIGATOKEN if beside == "gigatoken" else None, missing))
        rows.append(Row(*of, "tokenizers", rate, loop, OF_TOKENIZERS, f"tokenizers on {part:.1f} MB of it"))
    return rows


def trained(corpus: Corpus, size: float, vocabulary: int) -> Tokenizer:
    """A tokenizer of about so many bytes of a corpus."""
    try:
        return Tokenizer.train(corpus.sample(size).texts.to_pylist(), vocabulary)
    except InputError as error:
        raise InputError(f"--vocabularies has {vocabulary}, too many for {corpus.name}. {error}") from None


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def end_to_end(config: DataConfig, folder: Path) -> float:
    """The seconds that the stage takes when nothing of it is there, in a process of its own; its start does not count."""
    for place in (Path(config.output), Path(config.output) / units.FOLDER):
        shutil.rmtree(place / "tokens", ignore_errors=True)
    seconds = run_apart(config, "tokenize", folder).stages["tokens"].seconds
    assert seconds is not None
    return seconds


def read_texts(folder: Path, source: str) -> list[str]:
    return [text for batch in document.read(folder, source) for text in batch.column("text").to_pylist()]


def in_memory(path: Path, folder: Path, source: str, calls: int) -> float:
    """The seconds of the last of so many calls on all cores, each of a new engine; reading the texts and making engines do not count."""
    tokenizer, texts, seconds = Tokenizer.load(path), read_texts(folder, source), 0.0
    for _ in range(calls):
        engine = Gigatoken(tokenizer)._engine
        seconds = timed(lambda engine=engine: engine.encode_batch(texts, parallel=True))
    return seconds


def in_a_loop(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Batch by batch on all cores, as data preparation elsewhere does it."""
    own = tokenizers.Tokenizer.from_str(tokenizer.content)
    began = time.perf_counter()
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        for encoding in own.encode_batch(texts[first : first + TEXTS_AT_ONCE]):
            encoding.ids  # noqa: B018 - the numbers are what it is for, and are made here
    return time.perf_counter() - began
