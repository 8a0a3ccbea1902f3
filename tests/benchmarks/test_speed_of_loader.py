"""How fast training batches come from the page cache on one core, beside the loaders that the field uses.

Every side reads the same tokens in shuffled order and hands out int64 tokens and targets; each is measured by turns in one process, the
best of several rounds. A peer that is not installed is left out: `pip install litdata mosaicml-streaming megatron-core`.
"""

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_prep.process_memory import keep_freed_memory
from data_prep.shards import Manifest, ShardWriter
from pipeline.batch import Windows
from pipeline.loader import TrainingLoader

pytestmark = pytest.mark.benchmark

CONTEXT, MICRO_BATCH = 1024, 16
SHARD_TOKENS, SHARDS = 20_000_000, 3
BATCHES, ROUNDS = 600, 5
Batches = Iterator[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 million tokens of GPT-2's vocabulary in documents of 50 to 2,000."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    with ShardWriter(folder, "train", "noise", "uint16", SHARD_TOKENS) as writer:
        while len(writer.shards) < SHARDS:
            lengths = random.integers(50, 2000, 2000)
            writer.add(random.integers(0, 50257, lengths.sum(), dtype=np.uint16), lengths, lengths)
    splits = {"train": tuple(writer.shards[:SHARDS])}
    Manifest(folder, "uint16", 50257, 50256, "none", [{"name": "noise"}], splits).save()
    return Manifest.load(folder)


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    keep_freed_memory()
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def ours(corpus: Manifest, folder: Path, prefetch: int = 0) -> Callable[[], Batches]:
    samples = Windows(corpus.open("train"), corpus.fingerprint, 0, context=CONTEXT, sequences=MICRO_BATCH)

    def batches() -> Batches:
        loader = TrainingLoader(samples, steps=BATCHES, micro_batch=MICRO_BATCH, rank=0, ranks=1, prefetch=prefetch)
        return ((batch.tokens_BT, batch.targets_BT) for batch in loader)

    return batches


def blocks(corpus: Manifest) -> np.ndarray:
    """The corpus cut into rows of CONTEXT + 1 tokens, for the formats that hold such rows."""
    reader = corpus.open("train")
    count = len(reader) // (CONTEXT + 1)
    return reader.read(0, count * (CONTEXT + 1)).astype(np.uint16).reshape(count, -1)


def stacked(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    tokens = torch.stack([row.long() for row in rows])
    return tokens[:, :-1], tokens[:, 1:]


def litdata(corpus: Manifest, folder: Path) -> Callable[[], Batches]:
    """TokensLoader, through its own StreamingDataLoader; the chunks are written by its own writer, in this process."""
    pytest.importorskip("litdata", reason="litdata is not installed, so it is not compared")
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader())
    for number, row in enumerate(torch.from_numpy(blocks(corpus))):
        cache[number] = row
    cache.done()
    cache.merge()

    def batches() -> Batches:
        dataset = StreamingDataset(str(folder), item_loader=TokensLoader(CONTEXT + 1), shuffle=True, drop_last=True)
        return iter(StreamingDataLoader(dataset, batch_size=MICRO_BATCH, num_workers=0, collate_fn=stacked))

    return batches


def streaming(corpus: Manifest, folder: Path) -> Callable[[], Batches]:
    """mosaicml-streaming: MDS of raw token rows, as LLM Foundry has them."""
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed, so it is not compared")
    with streaming.MDSWriter(out=str(folder), columns={"tokens": "bytes"}) as writer:
        for row in blocks(corpus):
            writer.write({"tokens": row.tobytes()})

    def collate(samples: list[dict]) -> tuple[Tensor, Tensor]:
        return stacked([torch.from_numpy(np.frombuffer(s["tokens"], np.uint16).astype(np.int64)) for s in samples])

    def batches() -> Batches:
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=MICRO_BATCH)
        return iter(DataLoader(dataset, MICRO_BATCH, num_workers=0, collate_fn=collate))

    return batches


def megatron(corpus: Manifest, folder: Path) -> Callable[[], Batches]:
    """GPTDataset over a shard of ours, which is in its own format."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed, so it is not compared")
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=0, sequence_length=CONTEXT, reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        create_attention_mask=False, path_to_cache=str(folder), split="1",
        tokenizer=SimpleNamespace(eod=50256, pad=-1, unique_identifiers={}, vocab_size=50257),
    )  # fmt: skip
    prefix = str(corpus.folder / corpus.shards("train")[0].file)
    indexed = IndexedDataset(prefix, mmap=True)
    dataset = GPTDataset(indexed, prefix, np.arange(len(indexed), dtype=np.int32), None, Split.train, config)

    def collate(samples: list[dict]) -> tuple[Tensor, Tensor]:
        return torch.stack([s["tokens"] for s in samples]), torch.stack([s["labels"] for s in samples])

    return lambda: iter(DataLoader(dataset, MICRO_BATCH, num_workers=0, collate_fn=collate, drop_last=True))  # pyright: ignore


def rate(make: Callable[[], Batches]) -> float:
    """Tokens per second over BATCHES batches, the first two and what comes before them not counted."""
    batches = make()
    for tokens, targets in islice(batches, 2):
        assert tokens.shape == targets.shape == (MICRO_BATCH, CONTEXT)
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
    start = time.perf_counter()
    count = sum(tokens.numel() for tokens, _ in islice(batches, BATCHES - 2))
    return count / (time.perf_counter() - start)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_one_core_reads_fifty_million_tokens_a_second(corpus, tmp_path, capsys, prefetch):
    make = ours(corpus, tmp_path, prefetch)
    best = max(rate(make) for _ in range(ROUNDS))
    with capsys.disabled():
        print(f"\nprefetch {prefetch}: {best / 1e6:,.0f}M tokens/s")
    assert best > 50e6


@pytest.mark.parametrize("peer", [litdata, streaming, megatron], ids=lambda peer: peer.__name__)
def test_no_peer_reads_faster(corpus, tmp_path, capsys, peer):
    sides = {"ours": ours(corpus, tmp_path), peer.__name__: peer(corpus, tmp_path / "peer")}
    best = dict.fromkeys(sides, 0.0)
    for _ in range(ROUNDS):
        for name, make in sides.items():
            best[name] = max(best[name], rate(make))
    ratio = best["ours"] / best[peer.__name__]
    with capsys.disabled():
        print(f"\n{peer.__name__}: {best[peer.__name__] / 1e6:,.1f}M tokens/s, ours {ratio:.1f} x that")
    assert ratio >= 1
