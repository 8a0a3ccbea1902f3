"""Causal self-attention: many heads or few for keys and values, over everything or a band, in one document or across them.

Each kind goes through a fused kernel. The scores of all pairs of tokens are written out only where `weights` shows them, and
a T x T mask only for documents where there is no compiled kernel for them (on a CPU, or with dropout).
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from pipeline.layers.blockwise import attend_in_blocks
from pipeline.layers.cache import LayerCache
from pipeline.layers.documents import Documents, compiled
from pipeline.layers.position import Rotation, rotate

# B batch, T time, S tokens that can be looked at, D width, H heads, G heads of keys and values, K head width, N blocks, W band


class CausalSelfAttention(nn.Module):
    """Scaled dot-product attention in which no token sees a later one (Vaswani et al. 2017, section 3.2).

    Args:
        width: D.
        heads: H.
        dropout: probability, on the attention weights, while training.
        kv_heads: G, which divides H: each serves H / G query heads (Ainslie et al. 2023); None: H, 1: multi-query.
        head_width: K; None: D / H, which must be whole.
        bias: whether the linear layers have biases.
        band: a token sees only the last `band` tokens, itself included (Child et al. 2019, section 4.2); None: all.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, kv_heads: int | None = None, head_width: int | None = None,
        bias: bool = True, band: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.head_width = head_width or width // heads
        self.dropout = dropout
        self.band = band
        # Rows: all query heads, then all heads of keys, then all of values.
        self.query_key_value = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_width, bias=bias)
        self.output = nn.Linear(heads * self.head_width, width, bias=bias)
        self.attend = causal_attention if band is None else partial(banded_attention, band=band)

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None = None, rotation: Rotation | None = None,
        documents: Documents | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend from each token to itself and those before it, y_BTD.

        Args:
            cache: what the tokens follow; they are appended to it.
            rotation: turns queries and keys by their positions.
            documents: no token sees another document.
        """
        query, key, value = self.project(x_BTD, rotation)
        dropout = self.dropout if self.training else 0.0
        if cache is None or cache.empty:
            if cache is not None:
                cache.append(key, value)
            attended_BHTK = self.attend(query, key, value, dropout=dropout, documents=documents)
        else:
            positions_T = cache.append(key, value)
            key, value = cache.read()
            # One token sees all that is filled: without a mask the kernel is quicker.
            sees_all = len(positions_T) == 1 and cache.level is not None and self.band is None and documents is None
            mask = None if sees_all else visible(positions_T, key.shape[2], self.band, documents)
            attended_BHTK = scaled_dot_product(query, key, value, mask, dropout)
        return self.output(attended_BHTK.transpose(1, 2).flatten(2))

    def project(self, x_BTD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """query_BHTK, key_BGTK and value_BGTK."""
        heads_BHTK = self.query_key_value(x_BTD).unflatten(2, (-1, self.head_width)).transpose(1, 2)
        query, key, value = heads_BHTK.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return rotate(query, rotation), rotate(key, rotation), value

    def weights(
        self, x_BTD: Tensor, cache: None = None, rotation: Rotation | None = None, documents: Documents | None = None
    ) -> Tensor:
        """The weights_BHTS of what `forward` computes from the same arguments without a cache, as the formula has them."""
        query, key, _ = self.project(x_BTD, rotation)
        length = x_BTD.shape[1]
        scores_BHTS = query @ key.repeat_interleave(self.heads // self.kv_heads, dim=1).mT / math.sqrt(self.head_width)
        mask = visible(torch.arange(length, device=x_BTD.device), length, self.band, documents)
        return scores_BHTS.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def visible(positions_T: Tensor, keys: int, band: int | None, documents: Documents | None) -> Tensor:
    """Which of the first S positions a token at each of positions_T sees: mask_TS, with documents mask_B1TS."""
    behind_TS = positions_T[:, None] - torch.arange(keys, device=positions_T.device)
    mask = behind_TS >= 0
    if band is not None:
        mask = mask & (behind_TS < band)
    if documents is not None:
        mask = mask & documents.same(keys)
    return mask


def scaled_dot_product(query, key, value, mask: Tensor | None = None, dropout: float = 0.0, is_causal: bool = False):
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal, enable_gqa=grouped)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, documents: Documents | None = None
) -> Tensor:
    """Attention of T tokens to one another, each to itself and those before it. Returns attended_BHTK."""
    if documents is None:
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout:
            # torch's kernel for this takes two to six times as long.
            return attend_in_blocks(query, key, value)
        return scaled_dot_product(query, key, value, None, dropout, is_causal=True)
    if query.is_cuda and not dropout:
        return flexible_attention(query, key, value, documents)
    return scaled_dot_product(query, key, value, documents.causal_mask, dropout)


def flexible_attention(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """As `causal_attention`, by a kernel that skips blocks of other documents. It has no dropout."""
    grouped = query.shape[1] != key.shape[1]
    return compiled(flex_attention)(query, key, value, block_mask=documents.causal_blocks, enable_gqa=grouped)


def banded_attention(
    query: Tensor, key: Tensor, value: Tensor, band: int, dropout: float = 0.0, documents: Documents | None = None
) -> Tensor:
    """As `causal_attention`, each token to the last `band` tokens, itself included.

    The row is cut into blocks of `band` tokens, which see their own block and the one before it: T x 2 x band scores.
    """
    B, length = query.shape[0], query.shape[2]
    if length <= band:
        return causal_attention(query, key, value, dropout, documents)
    W, N = band, math.ceil(length / band)
    query, key, value = (F.pad(x, (0, 0, 0, N * W - length)) for x in (query, key, value))
    # The first block has none before it.
    mask = visible(torch.arange(W, device=query.device), W, None, documents and documents.first(W))
    start = scaled_dot_product(query[:, :, :W], key[:, :, :W], value[:, :, :W], mask, dropout)
    # All others as B x (N - 1) rows: W queries, and 2W keys that begin W before them.
    query = query[:, :, W:].unflatten(2, (N - 1, W)).transpose(1, 2).flatten(0, 1)
    key, value = (x.unfold(2, 2 * W, W).transpose(1, 2).flatten(0, 1).mT for x in (key, value))
    mask = visible(torch.arange(W, 2 * W, device=query.device), 2 * W, W, documents and documents.windows(W))
    rest = scaled_dot_product(query, key, value, mask, dropout)
    rest = rest.unflatten(0, (B, N - 1)).transpose(1, 2).flatten(2, 3)
    return torch.cat([start, rest], dim=2)[:, :, :length]
