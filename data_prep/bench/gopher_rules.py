"""Gopher's rules of quality and repetition beside datatrove's filters."""

from pathlib import Path

import pyarrow as pa

from data_prep.bench import gopher
from data_prep.bench.corpora import Corpus
from data_prep.bench.options import BenchOptions
from data_prep.bench.repeats import Repeats
from data_prep.bench.rounds import Row, on_one_core

LEAST = 20
WHAT, PEER = "cold", "datatrove"


def measure(corpus: Corpus, options: BenchOptions, folder: Path) -> list[Row]:
    return [on_one_core(beside_datatrove, corpus, options)]


def beside_datatrove(corpus: Corpus, options: BenchOptions) -> Row:
    batches = list(Repeats(corpus).batches(options.megabytes * 1e6))
    ids, texts = (pa.concat_arrays([batch.column(name) for batch in batches]) for name in ("id", "text"))
    found = gopher.measure(texts, ids, options.rounds, int(options.peer_megabytes * 1e6))
    rate, peer = found["bytes"] / 1e6 / found["seconds"], found["peer"]
    if peer is None:
        return Row("gopher", corpus.name, WHAT, PEER, rate, None, LEAST, "datatrove or spaCy is not installed")
    note = (
        f"one core; datatrove on {peer['bytes'] / 1e6:.1f} MB of it, {peer['decisions']:.2%} of its decisions are ours; "
        f"{peer['ratio_again']:.1f} x with the words known"
    )
    return Row("gopher", corpus.name, WHAT, PEER, rate, peer["bytes"] / 1e6 / peer["seconds"], LEAST, note)
