"""Which rank reads what and when: training in the run's order, evaluation from left to right.

A loader yields the micro-batches of one rank; the global batch of a step is the same whatever the number of ranks.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from pipeline.batch import Batch, PairReader, Samples, Tokens, class_numbers, pair_batch
from pipeline.models.base import NO_TOKEN

Item = TypeVar("Item")


class TrainingLoader:
    """Micro-batches of one rank for a whole run; its position is one integer that every rank shares.

    Which samples the global batch of a step is, `samples.batches` says, whatever the number of ranks; ranks and micro-batches
    only divide it. Iterating goes on from `consumed`, which is saved with the run.

    Args:
        steps: optimizer steps in the whole run.
        micro_batch: sequences at a time, where they have their longest context; of shorter ones as many as have the same tokens.
            Times `ranks`, they must divide every global batch.
        prefetch: micro-batches that a thread makes before they are asked for; with 0 there is no thread.
    """

    def __init__(self, samples: Samples, *, steps: int, micro_batch: int, rank: int, ranks: int, prefetch: int = 0):
        self.samples, self.prefetch = samples, prefetch
        self.steps, self.micro_batch, self.rank, self.ranks = steps, micro_batch, rank, ranks
        self.consumed = 0
        self.waited = 0.0
        """Seconds for which whoever iterates has waited for batches."""

    def __len__(self) -> int:
        batches = self.samples.batches
        return batches.tokens_at(self.steps) // (self.micro_batch * batches.context * self.ranks)

    def __iter__(self) -> Iterator[Batch]:
        batches = ahead(self.batches(self.consumed), self.prefetch)
        while True:
            asked = time.perf_counter()
            item = next(batches, None)
            self.waited += time.perf_counter() - asked
            if item is None:
                return
            # Counted when it is handed out: a checkpoint taken while the batch is in use must not repeat it, nor leave out
            # what was only made ahead.
            batch, self.consumed = item
            yield batch

    def batches(self, consumed: int) -> Iterator[tuple[Batch, int]]:
        """The micro-batches of this rank from a position on, each with the position that follows it."""
        batches = self.samples.batches
        for step in range(batches.step_of(consumed), self.steps):
            sequences = self.micro_batch * (batches.context // batches.segment_at(step).context)
            end = batches.position_at(step + 1)
            while consumed < end:
                first = consumed + self.rank * sequences
                consumed += sequences * self.ranks
                batch = self.samples.batch(np.arange(first, first + sequences))
                yield batch._replace(ends_step=consumed == end), consumed

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.consumed = state["consumed"]


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The same items in their order, up to `count` of them made by a thread before they are asked for.

    What fails in the thread is raised where its item would have come. The thread ends with the iteration, however that ends.
    """
    if count == 0:
        yield from items
        return
    end = object()
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        made = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := made.popleft().result()) is not end:
            made.append(thread.submit(next, items, end))
            yield item  # pyright: ignore[reportReturnType]
    finally:
        thread.shutdown(cancel_futures=True)


class EvaluationLoader(ABC):
    """A split from left to right. All ranks make the same number of batches; one that has run out of text yields empty ones."""

    batches: int

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(self.batches))

    @abstractmethod
    def batch(self, index: int) -> Batch: ...


class WindowEvaluation(EvaluationLoader):
    """Windows of `context` tokens, so that every token but the first is predicted once; they are dealt to the ranks in turn.

    Args:
        limit: predict only so many tokens.
    """

    def __init__(
        self, tokens: Tokens, *, context: int, micro_batch: int, rank: int, ranks: int, limit: int | None = None
    ):
        self.tokens, self.context, self.micro_batch, self.rank, self.ranks = tokens, context, micro_batch, rank, ranks
        self.targets = targets_within(tokens, limit)
        self.batches = -(-self.targets // (context * micro_batch * ranks))

    def batch(self, index: int) -> Batch:
        windows = index * self.micro_batch * self.ranks + self.rank + self.ranks * np.arange(self.micro_batch)
        starts = windows * self.context
        return evaluation_batch(self.tokens, starts, self.context, windows, end=self.targets, total=self.targets)


class StreamEvaluation(EvaluationLoader):
    """Each rank's part of a split as one row that goes on from batch to batch, so that no token of it lacks its past.

    Args:
        chunk: tokens in a batch.
        limit: predict only so many tokens.
    """

    def __init__(self, tokens: Tokens, *, chunk: int, rank: int, ranks: int, limit: int | None = None):
        self.tokens, self.chunk, self.targets = tokens, chunk, targets_within(tokens, limit)
        part = -(-self.targets // ranks)
        self.first, self.end = rank * part, min((rank + 1) * part, self.targets)
        self.batches = -(-part // chunk)

    def batch(self, index: int) -> Batch:
        start = np.array([self.first + index * self.chunk])
        batch = evaluation_batch(self.tokens, start, self.chunk, np.array([index]), end=self.end, total=self.targets)
        return batch._replace(continues=index > 0)


class PairEvaluation(EvaluationLoader):
    """Pairs in their order, dealt to the ranks in turn; sides longer than `context` are cut.

    Args:
        limit: read only as many pairs as begin within so many target tokens.
    """

    def __init__(
        self, pairs: PairReader, *, context: int, micro_batch: int, rank: int, ranks: int, start: int,
        labels: Sequence[Sequence[int]] | None = None, limit: int | None = None,
    ):  # fmt: skip
        self.pairs, self.context, self.micro_batch = pairs, context, micro_batch
        self.rank, self.ranks, self.start = rank, ranks, start
        self.classes = class_numbers(labels)
        lengths = np.minimum(pairs.pair_lengths()[:, 1].astype(np.int64), context)
        before = np.cumsum(lengths) - lengths
        self.count = len(lengths) if limit is None else int((before < limit).sum())
        self.targets = self.count if labels else int(lengths[: self.count].sum())
        self.batches = -(-self.count // (micro_batch * ranks))

    def batch(self, index: int) -> Batch:
        rows = index * self.micro_batch * self.ranks + self.rank + self.ranks * np.arange(self.micro_batch)
        pairs = [self.cut(*pair) for pair in self.pairs.gather_pairs(rows[rows < self.count])]
        filling = (np.array([self.start]), np.empty(0, np.int64))
        pairs += [filling] * (len(rows) - len(pairs))
        return pair_batch(pairs, rows, self.targets, start=self.start, classes=self.classes)

    def cut(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sides within the context: a source keeps its end-of-text, a target its beginning."""
        if len(source) > self.context:
            source = np.append(source[: self.context - 1], source[-1])
        return source, target if self.classes else target[: self.context]


def targets_within(tokens: Tokens, limit: int | None) -> int:
    """How many tokens of a split are predicted: all but the first, or `limit`."""
    return len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)


def evaluation_batch(
    tokens: Tokens, starts: np.ndarray, length: int, samples: np.ndarray, *, end: int, total: int
) -> Batch:
    """Rows of `length` tokens from each start, with targets up to token `end` only, of `total` in all ranks' batches."""
    rows = np.zeros((len(starts), length + 1), dtype=np.int64)
    for row, start in zip(rows, starts, strict=True):
        there = min(length + 1, end + 1 - start)
        if there > 1:
            row[:there] = tokens.gather(np.array([start]), there)[0]
    targets = rows[:, 1:].copy()
    targets[starts[:, None] + np.arange(length) >= end] = NO_TOKEN
    return Batch(torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets), torch.from_numpy(samples), total)
