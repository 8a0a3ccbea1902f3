"""How one parameter of ours lies in a Hugging Face file: as it is, transposed, or with its heads in another order.

Each layout is a pair of inverse functions, so that import and export cannot disagree. They hold for a weight (rows x inputs)
and for a bias (rows), and on the meta device, where they tell the shapes that a file must have.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """How the rows of a fused projection are to be read: `query` heads share `pairs` key and value heads of `width` rows."""

    query: int
    pairs: int
    width: int

    def split(self, fused: Tensor) -> tuple[Tensor, ...]:
        """Rows [all query heads; all key heads; all value heads] as three tensors."""
        return fused.split([self.query * self.width, self.pairs * self.width, self.pairs * self.width])


class Layout(Protocol):
    def to_theirs(self, ours: Tensor, heads: Heads) -> list[Tensor]:
        """The tensors of the file, in the order in which the table names them."""
        ...

    def to_ours(self, theirs: list[Tensor], heads: Heads) -> Tensor: ...


class Same:
    def to_theirs(self, ours: Tensor, heads: Heads) -> list[Tensor]:
        return [ours]

    def to_ours(self, theirs: list[Tensor], heads: Heads) -> Tensor:
        return theirs[0]


class Transposed:
    """GPT-2's Conv1D, whose weight is inputs x rows."""

    def to_theirs(self, ours: Tensor, heads: Heads) -> list[Tensor]:
        return [ours.t()]

    def to_ours(self, theirs: list[Tensor], heads: Heads) -> Tensor:
        return theirs[0].t()


class Separate:
    """Query, key and value as tensors of their own."""

    def to_theirs(self, ours: Tensor, heads: Heads) -> list[Tensor]:
        return list(heads.split(ours))

    def to_ours(self, theirs: list[Tensor], heads: Heads) -> Tensor:
        return torch.cat(theirs)


class Interleaved:
    """One fused tensor whose rows go pair by pair: the query heads that share a key head, that key head, its value head."""

    def to_theirs(self, ours: Tensor, heads: Heads) -> list[Tensor]:
        by_pair = [part.unflatten(0, (heads.pairs, -1, heads.width)) for part in heads.split(ours)]
        return [torch.cat(by_pair, dim=1).flatten(0, 2)]

    def to_ours(self, theirs: list[Tensor], heads: Heads) -> Tensor:
        sharing = heads.query // heads.pairs
        by_pair = theirs[0].unflatten(0, (heads.pairs, sharing + 2, heads.width))
        return torch.cat([part.flatten(0, 2) for part in by_pair.split([sharing, 1, 1], dim=1)])
