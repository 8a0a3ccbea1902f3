"""Causal self-attention with several heads, through the fused kernel of torch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.cache import LayerCache

# B batch, T time, S tokens seen so far including T, D width, H heads, K head width


class CausalSelfAttention(nn.Module):
    """Multi-head scaled dot-product attention in which no token sees a later one (Vaswani et al. 2017, section 3.2).

    Args:
        width: D, divisible by `heads`.
        heads: H.
        dropout: probability, on the attention weights, while training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None) -> Tensor:
        B, T, D = x_BTD.shape
        query, key, value = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in self.query_key_value(x_BTD).split(D, dim=2)
        )
        if cache is not None:
            key, value = cache.append(key, value)
        attended_BHTK = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, **causal(T, key.shape[2], x_BTD.device)
        )
        return self.output(attended_BHTK.transpose(1, 2).reshape(B, T, D))


def causal(queries: int, keys: int, device: torch.device) -> dict:
    """Arguments for `scaled_dot_product_attention` when the queries are the last of the keys' positions."""
    if queries == keys:
        return {"is_causal": True}
    if queries == 1:
        return {}
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return {"attn_mask": visible}
