"""What a batch is, and the two loaders that make them: training in the run's order, evaluation from left to right."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.order import SampleOrder

# B batch, T time

IGNORED = -100
"""The target that no loss counts (torch's own default)."""


class Batch(NamedTuple):
    """Sequences and what follows each of their tokens."""

    tokens_BT: Tensor
    targets_BT: Tensor
    """The next token at each position, or IGNORED."""
    samples_B: Tensor
    """Position of each sequence in the run's order (training) or its window in the split (evaluation)."""
    valid_tokens: int
    """Targets that count in the whole global batch, over all ranks and micro-batches."""


class Tokens(Protocol):
    """A long array of tokens, on disk or in memory."""

    def __len__(self) -> int: ...

    def gather(self, starts: np.ndarray, length: int, /) -> np.ndarray: ...


class TrainingLoader:
    """Micro-batches of one rank for a whole run; its position is one integer that every rank shares.

    The global batch of step s is the samples [s x sequences, (s+1) x sequences) of the order, whatever the number of ranks;
    ranks and micro-batches only divide it. Iterating goes on from `consumed`, which is saved with the run.

    Args:
        tokens: the training split.
        order: of its windows of `context` + 1 tokens.
        steps: optimizer steps in the whole run.
        sequences: in a global batch; divisible by `micro_batch` x `ranks`.
    """

    def __init__(
        self, tokens: Tokens, order: SampleOrder, *, context: int, steps: int, sequences: int, micro_batch: int,
        rank: int, ranks: int,
    ):  # fmt: skip
        self.tokens, self.order, self.context = tokens, order, context
        self.sequences, self.micro_batch, self.rank, self.ranks = sequences, micro_batch, rank, ranks
        self.total = steps * sequences
        self.consumed = 0

    def __len__(self) -> int:
        return self.total // (self.micro_batch * self.ranks)

    def __iter__(self) -> Iterator[Batch]:
        while self.consumed < self.total:
            first = self.consumed + self.rank * self.micro_batch
            # Counted before it is handed out: a checkpoint taken while the batch is in use must not repeat it.
            self.consumed += self.micro_batch * self.ranks
            yield self.batch(np.arange(first, first + self.micro_batch))

    def batch(self, positions: np.ndarray) -> Batch:
        """The samples at these positions of the order."""
        windows = self.order.windows(positions)
        tokens = torch.from_numpy(self.tokens.gather(windows * self.context, self.context + 1))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(positions), self.sequences * self.context)

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.consumed = state["consumed"]


class EvaluationLoader:
    """A split from left to right in windows of `context` tokens, so that every token but the first is predicted once.

    Windows are dealt to ranks in turn; the last one is filled up with ignored targets, and ranks that have run out of windows
    yield empty ones, so that all ranks make the same number of batches.
    """

    def __init__(
        self, tokens: Tokens, *, context: int, micro_batch: int, rank: int, ranks: int, limit: int | None = None
    ):
        self.tokens, self.context, self.micro_batch = tokens, context, micro_batch
        self.rank, self.ranks = rank, ranks
        self.targets = len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)
        self.windows = -(-self.targets // context)

    def __len__(self) -> int:
        return -(-self.windows // (self.micro_batch * self.ranks))

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            first = index * self.micro_batch * self.ranks + self.rank
            yield self.batch(first + self.ranks * np.arange(self.micro_batch))

    def batch(self, windows: np.ndarray) -> Batch:
        starts = windows * self.context
        tokens = np.zeros((len(windows), self.context + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            length = min(self.context + 1, self.targets + 1 - start)
            if length > 1:
                tokens[row, :length] = self.tokens.gather(np.array([start]), length)[0]
        targets = tokens[:, 1:].copy()
        targets[starts[:, None] + np.arange(self.context) >= self.targets] = IGNORED
        return Batch(
            torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets), torch.from_numpy(windows), self.targets
        )
