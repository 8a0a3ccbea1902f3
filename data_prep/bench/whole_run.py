"""The whole run, from JSON lines to shards: seconds and bytes of every stage, and memory."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from data_prep.bench.corpora import Corpus
from data_prep.bench.encoding import trained
from data_prep.bench.options import BenchOptions
from data_prep.bench.process import Done, run_apart
from data_prep.bench.repeats import Repeats
from data_prep.configuration import DataConfig
from data_prep.decontaminate import DecontaminateConfig
from data_prep.dedup import DedupConfig
from data_prep.filtering.gopher import GopherQuality, GopherRepetition
from data_prep.filtering.stage import FilterConfig
from data_prep.sources import Jsonl
from data_prep.split import SplitConfig
from data_prep.tokenization import TokenizerConfig

TRAINED_ON = 16e6
TEST_PASSAGES, TEST_WORDS = 200, 40
TESTS, TOKENIZER = "tests", "tokenizer.json"
STAGES = {
    "collect": "documents/",
    "filter": "filtered/",
    "dedup": "unique",
    "decontaminate": "decontaminated",
    "split": "split",
    "tokenizer": "tokenizer",
    "tokenize": "tokens",
}


@dataclass(frozen=True)
class StageCost:
    """One stage of a run: the text that it read and wrote, in bytes and documents, and its seconds."""

    name: str
    read_bytes: int
    written_bytes: int
    documents: int
    seconds: float

    @property
    def rate(self) -> float:
        """Megabytes of what it read a second."""
        return self.read_bytes / 1e6 / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class WholeRun:
    """A run over so many bytes of JSON lines; seconds and memory are those of its `Outcome`."""

    bytes: int
    seconds: float
    start_seconds: float
    worker_peak_bytes: int
    main_peak_bytes: int
    stages: list[StageCost]

    @property
    def rate(self) -> float:
        return self.bytes / 1e6 / self.seconds

    @property
    def peak_bytes(self) -> int:
        return max(self.worker_peak_bytes, self.main_peak_bytes)

    def json(self) -> dict[str, Any]:
        stages = [{**asdict(stage), "megabytes_a_second": stage.rate} for stage in self.stages]
        return {**asdict(self), "megabytes_a_second": self.rate, "stages": stages}


def measure(corpora: list[Corpus], megabytes: float, options: BenchOptions, folder: Path) -> WholeRun:
    """Run over so many megabytes of documents, each corpus a source of an equal share."""
    write_inputs(corpora, megabytes, min(options.vocabularies), folder)
    size = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    outcome = run_apart(configuration(folder, options.workers), "tokenize", folder)
    peaks = outcome.worker_peak_bytes, outcome.main_peak_bytes
    return WholeRun(size, outcome.seconds, outcome.start_seconds, *peaks, costs(outcome.stages, size))


def write_inputs(corpora: list[Corpus], megabytes: float, vocabulary: int, folder: Path) -> None:
    """JSON lines of each corpus, a test set with passages of it, and a tokenizer."""
    (folder / TESTS).mkdir(parents=True)
    passages = []
    for corpus in corpora:
        with (folder / f"{corpus.name}.jsonl").open("wb") as file:
            for batch in Repeats(corpus).batches(megabytes * 1e6 / len(corpora)):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                frame.write_ndjson(file)
        step = max(1, len(corpus.texts) * len(corpora) // TEST_PASSAGES)
        words = [text.split() for text in corpus.texts[::step].to_pylist()]
        passages += [" ".join(each[len(each) // 2 :][:TEST_WORDS]) for each in words]
    pl.DataFrame({"text": passages}).write_ndjson(folder / TESTS / "passages.jsonl")
    samples = [corpus.sample(TRAINED_ON / len(corpora)) for corpus in corpora]
    every = Corpus(
        "the corpora",
        *(pa.concat_arrays(list(part)) for part in zip(*((c.ids, c.texts) for c in samples), strict=True)),
    )
    trained(every, TRAINED_ON, vocabulary).save(folder / TOKENIZER)


def configuration(folder: Path, workers: int) -> DataConfig:
    """Gopher's filters, fuzzy deduplication, decontamination and tokenizing of the JSON lines in a folder."""
    sources = {
        path.stem: Jsonl(files=[str(path)], text_column="text", id_column="id")
        for path in sorted(folder.glob("*.jsonl"))
    }
    return DataConfig(
        str(folder / "out"),
        dict(sources),
        filter=FilterConfig(gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality()),
        dedup=DedupConfig(fuzzy=True),
        decontaminate=DecontaminateConfig(files=[str(folder / TESTS)]),
        split=SplitConfig(0, 0),
        # Trained beforehand: training reads a bounded part of a corpus and would make a small one look slow.
        tokenizer=TokenizerConfig(path=str(folder / TOKENIZER)),
        workers=workers,
    )


def costs(done: dict[str, Done], size: int) -> list[StageCost]:
    """What each stage has cost, in their order; those of several sources together."""
    found = []
    text_bytes = size
    for name, prefix in STAGES.items():
        own = [stage for key, stage in done.items() if key.startswith(prefix)]
        if not own or name == "tokenizer":
            continue
        written = [sums(stage.record) for stage in own]
        now, documents = (sum(part) for part in zip(*written, strict=True))
        found.append(StageCost(name, text_bytes, now, documents, sum(stage.seconds or 0.0 for stage in own)))
        text_bytes = now
    return found


def sums(record: dict[str, Any]) -> tuple[int, int]:
    """Bytes of text and documents that a stage has written."""
    parts: Iterable[dict[str, int]] = record["totals"].values() if "totals" in record else [record]
    parts = list(parts)
    return sum(part["text_bytes"] for part in parts), sum(part["documents"] for part in parts)
