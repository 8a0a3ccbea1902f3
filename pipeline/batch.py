"""What a batch is, and what makes batches of a split: independent windows, streams that go on, pairs, labelled texts.

Each kind of samples turns positions in a run's order into a `Batch`; which rank asks for which positions is the loader's affair
(`pipeline.loader`).
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from data_prep.files import InputError
from pipeline.batch_schedule import BatchSchedule
from pipeline.mixture import Mixture
from pipeline.models.base import NO_TOKEN
from pipeline.order import LengthOrder, SampleOrder, StreamOrder

# B batch, T time, S source time


POOL_BATCHES = 64
"""Batches from which pairs of like length are taken; an epoch's where it has fewer."""


class Batch(NamedTuple):
    """Sequences and what follows each of their tokens."""

    tokens_BT: Tensor
    targets_BT: Tensor
    """The next token (or the class) at each position, or NO_TOKEN where nothing is predicted."""
    samples_B: Tensor
    """Position of each sequence in the run's order (training) or in the split (evaluation)."""
    valid_tokens: int
    """Targets that count in the whole global batch, over all ranks and micro-batches."""
    source_BS: Tensor | None = None
    """What an encoder-decoder reads, filled up on the right with NO_TOKEN."""
    continues: bool = False
    """Whether each row goes on where the same row of the batch before ended."""
    ends_step: bool = True
    """Whether this is the last micro-batch of its global batch."""


class Tokens(Protocol):
    """A long array of tokens, on disk or in memory."""

    def __len__(self) -> int: ...

    def gather(self, starts: np.ndarray, length: int, /) -> np.ndarray: ...


class PairReader(Protocol):
    """Pairs of token sequences, each ending in end-of-text."""

    def pair_lengths(self) -> np.ndarray: ...

    def gather_pairs(self, indices: np.ndarray, /) -> list[tuple[np.ndarray, np.ndarray]]: ...


class Samples(Protocol):
    """The training samples of a run, by their position in its order."""

    epoch: int
    """Samples in an epoch."""
    mean_tokens: float
    """Tokens of a sample that count as trained on, averaged over an epoch."""
    batches: BatchSchedule
    """Which of them each step takes."""

    def batch(self, positions: np.ndarray, /) -> Batch:
        """The samples at these positions, all of one global batch."""
        ...

    def spans(self, positions: np.ndarray, /) -> list[tuple[int, int, int]]:
        """Where each of these samples lies: the part of the corpus (0 where there is one), its first token there, and how many
        tokens it reads, the last target included; of pairs, the number of the pair, and 1."""
        ...

    def positions(self, start: int, stop: int, /, below: int, part: int = 0) -> list[int]:
        """The positions < `below`, in order, whose spans overlap the tokens (of pairs: the pairs) [start, stop) of a part."""
        ...

    def epochs(self, below: int, /) -> list[float]:
        """How often each part of the corpus has been read through after so many samples of the run; 0.5: half of it once."""
        ...


class MixedWindows:
    """Windows of tokens, each by itself, from the parts of a corpus by weight; each part in a shuffled order of its own.

    In every phase of one context the parts are cut into windows of that context and shuffled anew.

    Args:
        parts: the tokens of each part, and a name that its order depends on.
        mixture: of as many sources as there are parts.
        batches: how many samples of which context a step takes.
    """

    def __init__(self, parts: Sequence[tuple[Tokens, str]], mixture: Mixture, seed: int, batches: BatchSchedule):
        self.parts, self.mixture, self.batches = [tokens for tokens, _ in parts], mixture, batches
        self.phases = batches.phases
        self.begins = [phase.position for phase in self.phases]
        self.orders = [
            [
                SampleOrder(f"{name}/phase {number}" if number else name, seed, windows_in(tokens, phase.context))
                for tokens, name in parts
            ]
            for number, phase in enumerate(self.phases)
        ]
        self.epoch = sum(windows_in(tokens, batches.context) for tokens in self.parts)
        self.mean_tokens = float(batches.context)

    def batch(self, positions: np.ndarray) -> Batch:
        phase = self.phase_of(int(positions[0]))
        parts, starts = self.starts(positions, phase)
        rows = torch.from_numpy(self.gather(parts, starts, self.phases[phase].context + 1))
        valid_tokens = self.batches.segment_at(self.batches.step_of(int(positions[0]))).batch_tokens
        return Batch(rows[:, :-1], rows[:, 1:], torch.from_numpy(positions), valid_tokens)

    def gather(self, parts: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """One row of tokens for each start in its part."""
        if len(self.parts) == 1:
            return self.parts[0].gather(starts, length)
        rows = np.empty((len(starts), length), dtype=np.int64)
        for part in np.unique(parts).tolist():
            chosen = parts == part
            rows[chosen] = self.parts[part].gather(starts[chosen], length)
        return rows

    def starts(self, positions: np.ndarray, phase: int) -> tuple[np.ndarray, np.ndarray]:
        """The part that each sample of a phase lies in, and its first token there."""
        parts, numbers = self.mixture.split(positions - self.begins[phase])
        windows = np.empty_like(numbers)
        for part in np.unique(parts).tolist():
            chosen = parts == part
            windows[chosen] = self.orders[phase][part].windows(numbers[chosen])
        return parts, windows * self.phases[phase].context

    def phase_of(self, position: int) -> int:
        return bisect_right(self.begins, position) - 1

    def spans(self, positions: np.ndarray) -> list[tuple[int, int, int]]:
        phases = np.searchsorted(self.begins, positions, side="right") - 1
        parts, starts = np.empty((2, len(positions)), dtype=np.int64)
        for phase in np.unique(phases).tolist():
            chosen = phases == phase
            parts[chosen], starts[chosen] = self.starts(positions[chosen], phase)
        lengths = np.array([phase.context + 1 for phase in self.phases])[phases]
        return list(zip(parts.tolist(), starts.tolist(), lengths.tolist(), strict=True))

    def positions(self, start: int, stop: int, below: int, part: int = 0) -> list[int]:
        found = []
        for phase, begin, end in zip(self.phases, self.begins, [*self.begins[1:], below], strict=True):
            order, context = self.orders[self.phase_of(begin)][part], phase.context
            # A window shares its last token with the next: there it is a target, here an input.
            windows = np.arange(max(0, (start - 1) // context), min(order.samples, -(-stop // context)))
            there = int(self.mixture.counts(max(0, min(end, below) - begin))[part])
            found += (begin + self.mixture.positions(part, order.positions(windows, there))).tolist()
        return sorted(found)

    def epochs(self, below: int) -> list[float]:
        passed = np.zeros(len(self.parts))
        for orders, begin, end in zip(self.orders, self.begins, [*self.begins[1:], below], strict=True):
            counts = self.mixture.counts(max(0, min(end, below) - begin))
            passed += counts / [order.samples for order in orders]
        return passed.tolist()


class Windows(MixedWindows):
    """The windows of `context` tokens of one corpus in a shuffled order, so many in every batch.

    Args:
        sequences: samples in a global batch.
    """

    def __init__(self, tokens: Tokens, fingerprint: str, seed: int, *, context: int, sequences: int):
        super().__init__([(tokens, fingerprint)], Mixture([1]), seed, BatchSchedule(sequences * context, context))


def windows_in(tokens: Tokens, context: int) -> int:
    """How many windows with a target for each token there are."""
    return (len(tokens) - 1) // context


class Streams:
    """Rows that go on from batch to batch, for truncated back-propagation through time.

    Args:
        sequences: rows of a global batch.
    """

    def __init__(self, tokens: Tokens, *, context: int, sequences: int):
        self.tokens, self.context, self.sequences = tokens, context, sequences
        self.order = StreamOrder(len(tokens), sequences, context)
        self.epoch = self.order.steps * sequences
        self.mean_tokens = float(context)
        self.batches = BatchSchedule(sequences * context, context)

    def batch(self, positions: np.ndarray) -> Batch:
        tokens = torch.from_numpy(self.tokens.gather(self.order.starts(positions), self.context + 1))
        begins = self.order.begins(int(positions[0]) // self.sequences)
        return Batch(
            tokens[:, :-1], tokens[:, 1:], torch.from_numpy(positions), self.sequences * self.context,
            continues=not begins,
        )  # fmt: skip

    def spans(self, positions: np.ndarray) -> list[tuple[int, int, int]]:
        return [(0, start, self.context + 1) for start in self.order.starts(positions).tolist()]

    def positions(self, start: int, stop: int, below: int, part: int = 0) -> list[int]:
        return sorted(self.order.positions(start, stop, below).tolist())

    def epochs(self, below: int) -> list[float]:
        return [below / self.epoch]


class Pairs:
    """Sources and targets in a shuffled order, pairs of like length together.

    Args:
        context: longest source and longest target in tokens, end-of-text included; longer pairs are left out.
        start: the token with which the decoder begins.
        labels: token sequences of the classes; given, the target is one of them and is predicted at the text's last token.
    """

    def __init__(
        self, pairs: PairReader, fingerprint: str, seed: int, *, context: int, sequences: int, start: int,
        labels: Sequence[Sequence[int]] | None = None,
    ):  # fmt: skip
        self.pairs, self.sequences, self.start = pairs, sequences, start
        self.batches = BatchSchedule(sequences * context, context)
        self.classes = class_numbers(labels)
        lengths = pairs.pair_lengths().astype(np.int64)
        self.kept = np.flatnonzero(lengths.max(1) <= context)
        self.left_out = len(lengths) - len(self.kept)
        self.lengths = lengths[self.kept]
        self.epoch = len(self.kept)
        self.mean_tokens = float(self.lengths[:, 0 if labels else 1].mean()) if self.epoch else 0.0
        # What a row costs is its longest side, and rows of like cost are batched together.
        self.cost = self.lengths.max(1)
        pool = max(1, min(POOL_BATCHES, self.epoch // sequences))
        self.order = LengthOrder(SampleOrder(fingerprint, seed, max(self.epoch, 1)), sequences, pool)
        self.global_batch = lru_cache(maxsize=2)(self._global_batch)

    def _global_batch(self, step: int) -> tuple[np.ndarray, int]:
        """The pairs of a global batch, and how many targets count in it."""
        rows = self.order.samples(step, self.cost)
        return self.kept[rows], len(rows) if self.classes else int(self.lengths[rows, 1].sum())

    def batch(self, positions: np.ndarray) -> Batch:
        step, rows = int(positions[0]) // self.sequences, positions % self.sequences
        chosen, valid_tokens = self.global_batch(step)
        pairs = self.pairs.gather_pairs(chosen[rows])
        return pair_batch(pairs, positions, valid_tokens, start=self.start, classes=self.classes)

    def spans(self, positions: np.ndarray) -> list[tuple[int, int, int]]:
        steps, rows = np.divmod(positions, self.sequences)
        return [(0, int(self.global_batch(step)[0][row]), 1) for step, row in zip(steps.tolist(), rows, strict=True)]

    def positions(self, start: int, stop: int, below: int, part: int = 0) -> list[int]:
        rows = np.flatnonzero((self.kept >= start) & (self.kept < stop))
        return sorted(self.order.positions(rows, below, self.cost).tolist())

    def epochs(self, below: int) -> list[float]:
        return [below / self.epoch]


def class_numbers(labels: Sequence[Sequence[int]] | None) -> dict[tuple[int, ...], int] | None:
    return None if labels is None else {tuple(label): number for number, label in enumerate(labels)}


def pair_batch(
    pairs: list[tuple[np.ndarray, np.ndarray]], samples: np.ndarray, valid_tokens: int, *, start: int,
    classes: dict[tuple[int, ...], int] | None = None,
) -> Batch:  # fmt: skip
    """Pairs as one batch, filled up on the right.

    Args:
        pairs: a row of the batch each; one with an empty target only fills the batch up.
        start: the token before each target, and where a target has ended.
        classes: number of the class that a target (without its end-of-text) names; None: the target is predicted token by token.

    Raises:
        InputError: a target that names no class.
    """
    sources = padded([source for source, _ in pairs])
    if classes is None:
        targets = padded([target for _, target in pairs])
        tokens = np.roll(np.where(targets == NO_TOKEN, start, targets), 1, axis=1)
        tokens[:, 0] = start
        return Batch(*as_tensors(tokens, targets, samples), valid_tokens, torch.from_numpy(sources))
    targets = np.full_like(sources, NO_TOKEN)
    for row, (source, target) in enumerate(pairs):
        if len(target):
            name = tuple(target[:-1].tolist())
            if name not in classes:
                raise InputError(
                    f"Sample {samples[row]} is labelled with the tokens {list(name)}, which are none of data.labels: name every label"
                )
            targets[row, len(source) - 1] = classes[name]
    tokens = np.where(sources == NO_TOKEN, start, sources)
    return Batch(*as_tensors(tokens, targets, samples), valid_tokens)


def as_tensors(tokens: np.ndarray, targets: np.ndarray, samples: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(samples)


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, at least one column wide, filled up on the right with NO_TOKEN."""
    result = np.full((len(rows), max(1, *map(len, rows))), NO_TOKEN, dtype=np.int64)
    for place, row in zip(result, rows, strict=True):
        place[: len(row)] = row
    return result
