"""Which document each token of a packed row belongs to, so that attention can stay inside it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# B batch, T new tokens, S tokens they may look at, L cache length


@cache
def compiled(function: Callable) -> Callable:
    """`torch.compile`, made when first called for: loading the compiler takes seconds."""
    return torch.compile(function)


@dataclass(frozen=True)
class Documents:
    """The number of the document that a token is in: of the new tokens, and of those they may look at."""

    queries_BT: Tensor
    keys_BS: Tensor

    def same(self, keys: int) -> Tensor:
        """same_B1TS: whether a query and one of the first S keys share a document."""
        return self.queries_BT[:, None, :, None] == self.keys_BS[:, None, None, :keys]

    def first(self, length: int) -> "Documents":
        """Of the first tokens of rows read whole."""
        numbers_BT = self.queries_BT[:, :length]
        return Documents(numbers_BT, numbers_BT)

    def windows(self, width: int) -> "Documents":
        """Of rows read whole, in blocks of `width`: a row for each but the first, its keys with those of the block before."""
        numbers_BT = F.pad(self.queries_BT, (0, -self.queries_BT.shape[1] % width))
        windows = numbers_BT.unfold(1, 2 * width, width).flatten(0, 1)
        return Documents(windows[:, width:], windows)

    @cached_property
    def causal_mask(self) -> Tensor:
        """mask_B1TT for rows read whole: what a token sees of its own document. Made once for all layers."""
        length = self.queries_BT.shape[1]
        return self.same(length) & torch.ones(length, length, dtype=torch.bool, device=self.queries_BT.device).tril()

    @cached_property
    def causal_blocks(self) -> BlockMask:
        """The same for flex_attention, without a T x T tensor."""
        numbers_BT = self.queries_BT
        B, T = numbers_BT.shape

        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (numbers_BT[b, query] == numbers_BT[b, key])

        return compiled(create_block_mask)(visible, B, None, T, T, device=numbers_BT.device)


class DocumentCache:
    """The document numbers of the tokens of B rows of at most L tokens, counted from 0 as the rows are read.

    Args:
        end: id of the token that ends a document, as its last.
    """

    def __init__(self, batch: int, length: int, end: int, *, device):
        self.end = end
        self.numbers_BL = torch.zeros(batch, length, device=device, dtype=torch.int64)
        self.ended_B1 = torch.zeros(batch, 1, device=device, dtype=torch.int64)

    def append(self, tokens_BT: Tensor, positions_T: Tensor) -> Documents:
        """Number the new tokens, which stand at these positions."""
        ends_BT = (tokens_BT == self.end).long()
        numbers_BT = self.ended_B1 + ends_BT.cumsum(1) - ends_BT
        self.numbers_BL.index_copy_(1, positions_T, numbers_BT)
        self.ended_B1 += ends_BT.sum(1, keepdim=True)
        return Documents(numbers_BT, self.numbers_BL)

    def select(self, rows_B: Tensor) -> "DocumentCache":
        """The cache of these rows of the batch, in tensors of its own."""
        chosen = copy.copy(self)
        chosen.numbers_BL, chosen.ended_B1 = self.numbers_BL[rows_B], self.ended_B1[rows_B]
        return chosen
