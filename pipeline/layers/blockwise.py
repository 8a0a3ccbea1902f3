"""Causal attention as batched matrix products over blocks of queries: on a CPU in bf16 they leave torch's fused kernel far behind.

Like that kernel it holds no T x T matrix: a block's weights are computed, used, and computed again by the backward pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# B batch, H heads, T time, K head width, R rows (batch x heads), Q queries of a block, S keys that a block sees

QUERIES = 128
"""Queries of a block. Fewer waste less on the triangle of keys that lie ahead, more make larger products."""


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of T tokens to one another, each to itself and those before it. Returns attended_BHTK.

    Scores round to the inputs' type before the softmax, which is taken in fp32.

    Args:
        query: (B, H, T, K).
        key: (B, G, T, K), where G divides H; so too value.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    rows = (x.flatten(0, 1) for x in (query, key, value))
    return BlockwiseAttention.apply(*rows).view(query.shape)  # pyright: ignore[reportOptionalMemberAccess]


class BlockwiseAttention(torch.autograd.Function):
    """(query_RTK, key_RTK, value_RTK) -> attended_RTK."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        with torch.autocast(query.device.type, enabled=False):
            attended = [weights @ value[:, :end] for _, end, weights in blocks(query, key)]
        return torch.cat(attended[::-1], dim=1)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        scale = query.shape[2] ** -0.5
        of_query, of_key, of_value = [], None, None
        for start, end, weights in blocks(query, key):
            of_attended = gradient[:, start:end]
            of_weights = of_attended @ value[:, :end].mT
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query.append(scaled_product(of_scores, key[:, :end], scale))
            of_keys_seen, of_values_seen = (
                scaled_product(of_scores.mT, query[:, start:end], scale),
                weights.mT @ of_attended,
            )
            if of_key is None or of_value is None:
                of_key, of_value = of_keys_seen, of_values_seen
            else:
                of_key[:, :end] += of_keys_seen
                of_value[:, :end] += of_values_seen
        return torch.cat(of_query[::-1], dim=1), of_key, of_value


def blocks(query: Tensor, key: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """The first and last position of each block of queries (the latter excluded), and its weights_RQS over the keys so far.

    The last block, which sees all keys, comes first.
    """
    length = query.shape[1]
    ahead = torch.full((QUERIES, QUERIES), -torch.inf, dtype=query.dtype, device=query.device).triu_(1)
    for start in reversed(range(0, length, QUERIES)):
        end = min(start + QUERIES, length)
        scores = scaled_product(query[:, start:end], key[:, :end].mT, query.shape[2] ** -0.5)
        scores[:, :, start:] += ahead[: end - start, : end - start]
        yield start, end, scores.softmax(dim=-1)


def scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale x (a @ b), scaled before it is rounded."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
