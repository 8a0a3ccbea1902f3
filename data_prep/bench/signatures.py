"""MinHash signatures beside the first stage of datatrove's deduplication, with the same bands and rows."""

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import pyarrow as pa

from data_prep.bench.corpora import Corpus
from data_prep.bench.options import BenchOptions
from data_prep.bench.repeats import Repeats
from data_prep.bench.rounds import Row, fastest, on_one_core, timed
from data_prep.document import text_buffer
from data_prep.minhash import MinhashConfig, band_keys

CONFIGS = (MinhashConfig(), MinhashConfig(bands=14, rows=8))
LEAST = 20


def measure(corpus: Corpus, options: BenchOptions, folder: Path) -> list[Row]:
    return on_one_core(beside_datatrove, corpus, options, folder)


def beside_datatrove(corpus: Corpus, options: BenchOptions, folder: Path) -> list[Row]:
    """Each configuration of bands and rows, in one process."""
    batches = list(Repeats(corpus).batches(options.megabytes * 1e6))
    texts = pa.concat_arrays([batch.column("text") for batch in batches])
    step = max(1, int(megabytes(texts) / options.peer_megabytes))
    sample = texts.take(pa.array(range(0, len(texts), step)))
    return [compared(corpus.name, config, batches, sample, options.rounds, folder) for config in CONFIGS]


def compared(
    name: str, config: MinhashConfig, batches: list[pa.RecordBatch], sample: pa.StringArray, rounds: int, folder: Path
) -> Row:
    """From text in memory to a file of the bands' keys on our side, to sorted files of signatures on theirs."""
    # What is loaded once, as datatrove's words below.
    band_keys(batches[0].slice(0, 1), config)
    works = {"ours": lambda: timed(lambda: write_keys(batches, config, folder / "keys"), process_time)}
    if there := importlib.util.find_spec("datatrove") is not None:
        texts = sample.to_pylist()
        works["datatrove"] = lambda: with_datatrove(texts, config, folder)
    seconds = fastest(works, rounds)
    rate = sum(megabytes(batch.column("text")) for batch in batches) / seconds["ours"]
    of = ("signatures", name, f"{config.bands} x {config.rows}", "datatrove", rate)
    if not there:
        return Row(*of, None, LEAST, "datatrove is not installed")
    part = megabytes(sample)
    return Row(
        *of, part / seconds["datatrove"], LEAST, f"one core, seconds of the processor; datatrove on {part:.1f} MB of it"
    )


def write_keys(batches: list[pa.RecordBatch], config: MinhashConfig, path: Path) -> None:
    with path.open("wb") as file:
        for batch in batches:
            file.write(band_keys(batch, config).keys.tobytes())


def with_datatrove(texts: list[str], config: MinhashConfig, folder: Path) -> float:
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.logging import logger

    logger.remove()
    settings = minhash.MinhashConfig(n_grams=config.ngram, num_buckets=config.bands, hashes_per_bucket=config.rows)
    documents = [Document(text=text, id=str(k)) for k, text in enumerate(texts)]
    with TemporaryDirectory(dir=folder) as own:
        step = minhash.MinhashDedupSignature(own, settings)
        step.get_shingles("What it loads, it loads before.")
        return timed(lambda: step.run(iter(documents)), process_time)


def megabytes(texts: pa.Array) -> float:
    return len(text_buffer(texts)) / 1e6
