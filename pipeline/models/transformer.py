"""Decoder-only transformers: one model of exchangeable parts, of which GPT-1, GPT-2, GPT-3, LLaMA, Falcon and Pythia are settings."""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from pipeline import budget
from pipeline.layers.attention import CausalSelfAttention
from pipeline.layers.cache import LayerCache
from pipeline.layers.documents import DocumentCache, Documents
from pipeline.layers.head import Head
from pipeline.layers.mlp import MLP, GatedMLP
from pipeline.layers.position import LearnedPositions, RotaryPositions, Rotation
from pipeline.models.base import CausalModel, ModelConfig

# B batch, T time, D width, V vocabulary

NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
MLPS = {"gelu": partial(MLP, activation="gelu"), "gelu_tanh": partial(MLP, activation="gelu_tanh"), "swiglu": GatedMLP}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """A decoder-only transformer; the defaults are GPT-2's (Radford et al. 2019, section 2.3)."""

    family: ClassVar[str] = "transformer"

    context: int
    """Longest input in tokens; with learned positions their number."""
    layers: int
    """Number of blocks."""
    width: int
    """D: size of a token's vector in the residual stream."""
    heads: int
    """Attention heads of queries; they divide the width unless head_width is given."""
    kv_heads: int | None = None
    """Heads of keys and values, each shared by heads / kv_heads query heads; 1 is multi-query. As many as heads when not given."""
    head_width: int | None = None
    """Size of one head; width / heads when not given."""
    hidden: int | None = None
    """Width of the MLP's middle; 4 x width when not given."""
    dropout: float = 0.0
    """Dropout probability on embeddings, attention weights and both residual branches."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of normalisation: LayerNorm with gain and bias, or RMSNorm with a gain (Zhang & Sennrich 2019)."""
    norm_eps: float = 1e-5
    """Added to the variance or mean square before its root."""
    norm_order: Literal["pre", "post"] = "pre"
    """Normalise what attention and MLP read, and once more before the head; or, as GPT-1, the sum after each of them."""
    positions: Literal["learned", "rotary"] = "learned"
    """A vector for each position, added to the token's; or a rotation of queries and keys (Su et al. 2021)."""
    rotary_base: float = 10000.0
    """Base of the rotary angles (theta)."""
    rotary_fraction: float = 1.0
    """Share of a head's features that rotary positions turn."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    """Of the MLP: exact GELU, its tanh approximation, or a gate (Shazeer 2020), which is a third matrix."""
    bias: bool = True
    """Whether the linear layers of attention and MLP have biases. The head has none."""
    parallel: bool = False
    """Attention and MLP read the same residual stream, rather than the MLP what attention has written."""
    shared_norm: bool = False
    """With parallel: one normalisation for both, as in Falcon."""
    tied: bool = True
    """Whether the output head is the token embedding."""
    band: int | None = None
    """In banded layers a token sees only the last `band` tokens, itself included. No layer is banded when not given."""
    band_every: int = 2
    """With band: every so manieth layer is banded. 2 alternates dense and banded as in GPT-3, 1 leaves none dense."""
    document_end: int | None = None
    """Id of the token that ends a document: no token then sees an earlier document. All see everything when not given."""
    init_std: float = 0.02
    """Standard deviation of the normal distribution from which weights start."""
    position_std: float = 0.01
    """The same for learned positions."""
    scale_residual_init: bool = True
    """Whether projections into the residual stream start 1/sqrt(2 x layers) as large (Radford et al. 2019, section 2.3)."""
    residual_std: float | None = None
    """A standard deviation of their own for these projections, in place of the scaling."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive(
            "context", "layers", "width", "heads", "kv_heads", "head_width", "hidden", "band", "band_every"
        )
        self.require_probability("dropout")
        for field in fields(self):
            kinds, value = get_args(field.type), getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in kinds:
                raise ValueError(f"{field.name} is {value}: it must be one of {', '.join(kinds)}")
        for name in ("norm_eps", "rotary_base", "init_std", "position_std", "residual_std"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: it must be positive")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not divisible by {self.heads} heads: change one of them or give head_width"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv_heads evenly: change one of them")
        if self.positions == "rotary":
            turned = self.rotated_features
            if not 0 < self.rotary_fraction <= 1 or turned % 2 or turned < 2:
                raise ValueError(
                    f"rotary_fraction {self.rotary_fraction} of {self.head_features} features a head turns {turned}: "
                    "it must lie in (0, 1] and turn an even number"
                )
        if self.shared_norm and not self.parallel:
            raise ValueError(
                "shared_norm is true, but one norm serves two readers only with parallel: set both or none"
            )
        if self.parallel and self.norm_order == "post":
            raise ValueError("norm_order is post, but parallel blocks normalise what they read: set one of them back")
        if self.document_end is not None and not 0 <= self.document_end < self.vocab_size:
            raise ValueError(
                f"document_end is {self.document_end}: it must be a token id below vocab_size {self.vocab_size}"
            )

    @property
    def head_features(self) -> int:
        """Size of one head, given or not."""
        return self.head_width or self.width // self.heads

    @property
    def rotated_features(self) -> int:
        """How many features of a head rotary positions turn."""
        return int(self.head_features * self.rotary_fraction)

    @property
    def projection_std(self) -> float:
        """Standard deviation from which the projections into the residual stream start."""
        scale = 1 / math.sqrt(2 * self.layers) if self.scale_residual_init else 1.0
        return self.residual_std or self.init_std * scale

    def band_of(self, layer: int) -> int | None:
        """The band of a layer, counted from 0; None for a dense one."""
        return self.band if (layer + 1) % self.band_every == 0 else None

    def build(self) -> "Transformer":
        return Transformer(self)


class Block(nn.Module):
    """Attention, then MLP, each reading the normalised residual stream and adding to it (GPT-2, GPT-3, LLaMA)."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.attention_norm = NORMS[config.norm](config.width, eps=config.norm_eps)
        self.attention = CausalSelfAttention(
            config.width, config.heads, config.dropout, kv_heads=config.kv_heads, head_width=config.head_width,
            bias=config.bias, band=config.band_of(layer),
        )  # fmt: skip
        self.mlp_norm = NORMS[config.norm](config.width, eps=config.norm_eps)
        self.mlp = MLPS[config.activation](config.width, config.hidden or 4 * config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, rotation: Rotation | None, documents: Documents | None
    ) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), cache, rotation, documents))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class PostNormBlock(Block):
    """Each sum is normalised after it is made, so that the residual stream is too (GPT-1)."""

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, rotation: Rotation | None, documents: Documents | None
    ) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, cache, rotation, documents)))
        return self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))


class ParallelBlock(Block):
    """Attention and MLP read the same residual stream, each through its own norm (Pythia)."""

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, rotation: Rotation | None, documents: Documents | None
    ) -> Tensor:
        attended_BTD = self.dropout(self.attention(self.attention_norm(x_BTD), cache, rotation, documents))
        return x_BTD + attended_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class SharedNormBlock(Block):
    """Attention and MLP read the same residual stream through the same norm (Falcon)."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__(config, layer)
        del self.mlp_norm

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None, rotation: Rotation | None, documents: Documents | None
    ) -> Tensor:
        read_BTD = self.attention_norm(x_BTD)
        return (
            x_BTD
            + self.dropout(self.attention(read_BTD, cache, rotation, documents))
            + self.dropout(self.mlp(read_BTD))
        )


def block_kind(config: TransformerConfig) -> type[Block]:
    if config.norm_order == "post":
        return PostNormBlock
    if config.parallel:
        return SharedNormBlock if config.shared_norm else ParallelBlock
    return Block


@dataclass(frozen=True)
class TransformerState:
    """The tokens seen so far, as each layer remembers them, and, where attention needs it, by their documents."""

    caches: list[LayerCache]
    documents: DocumentCache | None


class Transformer(CausalModel):
    config: TransformerConfig
    context: int
    has_blocks = True

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.context = config.context
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.position_embedding = LearnedPositions(config.context, config.width)
        else:
            self.position_embedding = RotaryPositions(config.rotated_features, config.rotary_base)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(block_kind(config)(config, layer) for layer in range(config.layers))
        # Post-norm blocks end in a norm as they are.
        self.norm = (
            NORMS[config.norm](config.width, eps=config.norm_eps) if config.norm_order == "pre" else nn.Identity()
        )
        self.head = Head(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self.apply(self.initialise)

    @property
    def attentions(self) -> list[CausalSelfAttention]:
        """The attention of each block, in order."""
        return [module for module in self.modules() if isinstance(module, CausalSelfAttention)]

    def initialise(self, module: nn.Module) -> None:
        """Weights N(0, init_std), positions N(0, position_std), projections into the residual stream as configured, biases 0."""
        tied = module is self.head and self.config.tied  # It is drawn as the embedding.
        if isinstance(module, nn.Embedding | nn.Linear) and not tied:
            at_positions = module is self.position_embedding
            nn.init.normal_(module.weight, std=self.config.position_std if at_positions else self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            # `apply` reaches a block after its children, so this replaces what they drew.
            # By `apply`, too: where weights are born in parts (ZeRO stage 3), that is what gathers them.
            for projection in (module.attention.output, module.mlp.output):
                projection.apply(self.initialise_projection)

    def initialise_projection(self, projection: nn.Module) -> None:
        assert isinstance(projection, nn.Linear)
        nn.init.normal_(projection.weight, std=self.config.projection_std)

    def hidden(
        self, tokens_BT: Tensor, state: TransformerState | None = None
    ) -> tuple[Tensor, TransformerState | None]:
        length = tokens_BT.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens are more than the model's context of {self.context}: shorten the input")
        positions_T = state.caches[0].next_positions(length) if state else torch.arange(length, device=tokens_BT.device)
        read = state.documents if state else self.document_cache(*tokens_BT.shape)
        documents = read and read.append(tokens_BT, positions_T)
        x_BTD = self.dropout(self.position_embedding(self.token_embedding(tokens_BT), positions_T))
        rotation = self.position_embedding.rotation(positions_T)
        caches = state.caches if state else [None] * len(self.blocks)
        for number, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
            x_BTD = self.run_block(number, block, x_BTD, cache, rotation, documents)
        return self.norm(x_BTD), state

    def document_cache(self, batch: int, length: int) -> DocumentCache | None:
        end, device = self.config.document_end, self.token_embedding.weight.device
        return None if end is None else DocumentCache(batch, length, end, device=device)

    def init_state(self, batch: int, length: int, source_BS: Tensor | None = None) -> TransformerState:
        weight = self.token_embedding.weight
        length = min(length, self.context)
        caches = [
            LayerCache(
                batch, attention.kv_heads, length, attention.head_width, device=weight.device, dtype=weight.dtype
            )
            for attention in self.attentions
        ]
        return TransformerState(caches, self.document_cache(batch, length))

    def select(self, state: TransformerState, rows_B: Tensor) -> TransformerState:
        documents = state.documents and state.documents.select(rows_B)
        return TransformerState([cache.select(rows_B) for cache in state.caches], documents)

    def attention_maps(self, tokens_BT: Tensor, source_BS: Tensor | None = None) -> dict[str, list[Tensor]]:
        maps: list[Tensor] = []

        def keep(attention: CausalSelfAttention, inputs: tuple) -> None:
            maps.append(attention.weights(*inputs))

        hooks = [attention.register_forward_pre_hook(keep) for attention in self.attentions]
        try:
            self.hidden(tokens_BT)
        finally:
            for hook in hooks:
                hook.remove()
        return {"self": maps}

    def flops_per_token(self, context: int) -> int:
        # A table multiplies once, if it is the head too; a look-up of a position or a token multiplies nothing.
        tables = {m.weight for m in self.modules() if isinstance(m, nn.Embedding)} - {self.head.weight}
        multiplied = sum(p.numel() for p in self.parameters()) - sum(table.numel() for table in tables)
        spans = [min(attention.band or context, context) for attention in self.attentions]
        width = self.config.heads * self.config.head_features
        return budget.dense_flops_per_token(multiplied) + sum(
            budget.attention_flops_per_token(width, span) for span in spans
        )
