"""Decoder-only transformers, in GPT-2's form: pre-norm blocks, learned positions, a head tied to the token embedding."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline import budget
from pipeline.layers.attention import CausalSelfAttention
from pipeline.layers.cache import LayerCache
from pipeline.layers.mlp import MLP
from pipeline.models.base import LanguageModel, ModelConfig

# B batch, T time, D width, V vocabulary


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """A decoder-only transformer (Radford et al. 2019, section 2.3)."""

    family: ClassVar[str] = "transformer"

    context: int
    """Longest input in tokens: the number of learned positions."""
    layers: int
    """Number of blocks."""
    width: int
    """D: size of a token's vector in the residual stream."""
    heads: int
    """Attention heads; they divide the width."""
    hidden: int | None = None
    """Width of the MLP's middle; 4 x width when not given."""
    dropout: float = 0.0
    """Dropout probability on embeddings, attention weights and both residual branches."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("context", "layers", "width", "heads")
        self.require_probability("dropout")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads: change one of them")

    def build(self) -> "Transformer":
        return Transformer(self)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cache: LayerCache | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), cache))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class Transformer(LanguageModel):
    config: TransformerConfig
    context: int

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.context = config.context
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        hidden = config.hidden or 4 * config.width
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, hidden, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        """GPT-2's initialisation: N(0, 0.02), positions N(0, 0.01), residual projections shrunk by 1/sqrt(2 x layers)."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.01 if module is self.position_embedding else 0.02)
        elif isinstance(module, nn.Linear) and module is not self.head:
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Block):
            # `apply` reaches a block after its children, so this replaces what they drew.
            for projection in (module.attention.output, module.mlp.output):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.layers))

    def forward(self, tokens_BT: Tensor, state: list[LayerCache] | None = None):
        T = tokens_BT.shape[1]
        start = state[0].filled if state else 0
        if start + T > self.context:
            raise ValueError(
                f"{start + T} tokens are more than the model's context of {self.context}: shorten the input"
            )
        positions_T = torch.arange(start, start + T, device=tokens_BT.device)
        x_BTD = self.dropout(self.token_embedding(tokens_BT) + self.position_embedding(positions_T))
        for block, cache in zip(self.blocks, state or [None] * len(self.blocks), strict=True):
            x_BTD = block(x_BTD, cache)
        return self.head(self.norm(x_BTD)), state

    def init_state(self, batch: int, length: int) -> list[LayerCache]:
        weight = self.token_embedding.weight
        return [
            LayerCache(
                batch, self.config.heads, min(length, self.context), self.config.width // self.config.heads,
                device=weight.device, dtype=weight.dtype,
            )
            for _ in self.blocks
        ]  # fmt: skip

    def flops_per_token(self, context: int) -> int:
        # The tied table counts once, as the head; a look-up of a position or a token multiplies nothing.
        multiplied = sum(p.numel() for p in self.parameters()) - self.position_embedding.weight.numel()
        return budget.transformer_flops_per_token(multiplied, self.config.layers, self.config.width, context)
