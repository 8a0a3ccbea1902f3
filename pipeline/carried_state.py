"""The hidden state that a recurrent model carries from batch to batch over its streams, and how a checkpoint holds it."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.base import LanguageModel

# L layers, R rows of the global batch, B rows of a micro-batch, D width


class CarriedState:
    """The state after each row of the global batch. A rank keeps room for all of them and fills those that it trains on.

    So what is saved is free of the ranks: a run goes on with the same states on another number of them.
    """

    def __init__(self, model: LanguageModel, rows: int):
        self.parts_LRD: tuple[Tensor, ...] = tuple(part.float() for part in model.init_state(rows, 1))
        self.own_R = torch.zeros(rows, dtype=torch.bool, device=self.parts_LRD[0].device)
        self.kept: tuple[Tensor, ...] = ()

    def read(self, rows_B: Tensor) -> tuple[Tensor, ...]:
        """The state of these rows, cut off from the graph of the step that left it."""
        return tuple(part[:, rows_B].contiguous() for part in self.parts_LRD)

    def write(self, rows_B: Tensor, state: tuple[Tensor, ...]) -> None:
        for part, new in zip(self.parts_LRD, state, strict=True):
            part[:, rows_B] = new.detach().float()
        self.own_R[rows_B] = True

    def keep(self) -> None:
        """Remember the states as they are now, for `go_back`."""
        if not self.kept:
            self.kept = tuple(torch.empty_like(part) for part in (*self.parts_LRD, self.own_R))
        for copy, part in zip(self.kept, (*self.parts_LRD, self.own_R), strict=True):
            copy.copy_(part)

    def go_back(self) -> None:
        """Have the states as they were at the last `keep`."""
        for copy, part in zip(self.kept, (*self.parts_LRD, self.own_R), strict=True):
            part.copy_(copy)

    def gather(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The states of all rows, from the ranks that have them, on the CPU; every rank calls it."""
        return [sum_over_ranks(part * self.own_R[:, None]).cpu() for part in self.parts_LRD]

    def load(self, parts: list[Tensor]) -> None:
        for part, saved in zip(self.parts_LRD, parts, strict=True):
            part.copy_(saved)
        self.own_R.zero_()
