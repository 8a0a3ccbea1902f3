"""Attention over a sequence that is read whole: the encoder's over its own source, the decoder's over what the encoder made of it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B batch, T queries, S memory length, D width, H heads, K head width


class Memory(NamedTuple):
    """What the queries of one attention layer look at."""

    keys_BHSK: Tensor
    values_BHSK: Tensor
    visible_B11S: Tensor | None
    """False where the source has ended; None where no row is shorter than another."""

    def select(self, rows_B: Tensor) -> "Memory":
        """The memory of these rows of the batch, in tensors of its own."""
        visible_B11S = None if self.visible_B11S is None else self.visible_B11S[rows_B]
        return Memory(self.keys_BHSK[rows_B], self.values_BHSK[rows_B], visible_B11S)


class CrossAttention(nn.Module):
    """Multi-head scaled dot-product attention without order (Vaswani et al. 2017, section 3.2): every query sees all of a memory.

    `attention(x_BTD, attention.read(memory_BSD))`; a decoder reads the memory once and then asks it token by token.

    Args:
        width: D, divisible by `heads`.
        heads: H.
        bias: of all four projections.
    """

    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias)
        self.key_value = nn.Linear(width, 2 * width, bias)
        self.output = nn.Linear(width, width, bias)

    def split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)  # BHTK

    def read(self, memory_BSD: Tensor, visible_B11S: Tensor | None = None) -> Memory:
        """The memory's keys and values.

        Args:
            visible_B11S: False where nothing may be seen; at least one place of each row must be visible.
        """
        keys_BSD, values_BSD = self.key_value(memory_BSD).chunk(2, dim=2)
        return Memory(self.split(keys_BSD), self.split(values_BSD), visible_B11S)

    def forward(self, x_BTD: Tensor, memory: Memory) -> Tensor:
        attended_BHTK = F.scaled_dot_product_attention(
            self.split(self.query(x_BTD)), memory.keys_BHSK, memory.values_BHSK, attn_mask=memory.visible_B11S
        )
        return self.output(attended_BHTK.transpose(1, 2).flatten(2))

    def weights(self, x_BTD: Tensor, memory: Memory) -> Tensor:
        """How much each query takes from each place of the memory, as probabilities_BHTS."""
        scores_BHTS = self.split(self.query(x_BTD)) @ memory.keys_BHSK.transpose(2, 3)
        scores_BHTS = scores_BHTS / math.sqrt(memory.keys_BHSK.shape[3])
        if memory.visible_B11S is not None:
            scores_BHTS = scores_BHTS.masked_fill(~memory.visible_B11S, -torch.inf)
        return scores_BHTS.softmax(-1)
