"""The encoder-decoder transformer of Vaswani et al. (2017): one stack reads the source, another predicts the target from it."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from pipeline import budget
from pipeline.layers.attention import CausalSelfAttention
from pipeline.layers.cache import LayerCache
from pipeline.layers.cross_attention import CrossAttention, Memory
from pipeline.layers.head import Head, Targets
from pipeline.layers.mlp import MLP
from pipeline.layers.position import LearnedPositions, Sinusoids
from pipeline.models.base import NO_TOKEN, EncoderDecoder, ModelConfig

# B batch, T time, S source time, D width, H heads, V vocabulary

Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class TransformerSeq2SeqConfig(ModelConfig):
    """An encoder-decoder transformer (Vaswani et al. 2017). Source and target share one vocabulary."""

    family: ClassVar[str] = "seq2seq_transformer"

    context: int
    """Longest source and longest target in tokens: the number of learned positions. Sinusoidal ones go on beyond it."""
    encoder_layers: int
    """Number of blocks that read the source."""
    decoder_layers: int
    """Number of blocks that predict the target."""
    width: int
    """D: size of a token's vector in the residual stream."""
    heads: int
    """Heads of each attention; they divide the width."""
    hidden: int | None = None
    """Width of the MLP's middle; 4 x width when not given."""
    dropout: float = 0.0
    """Dropout probability on embeddings and on what each attention and MLP adds (section 5.4); not on attention weights."""
    norm_order: Literal["pre", "post"] = "post"
    """LayerNorm after each residual sum, as in the paper, or before each attention and MLP, with another at each stack's end."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Sines and cosines (section 3.5), or a table for the source and one for the target."""
    activation: Literal["relu", "gelu"] = "relu"
    """Of the MLP."""
    tied: bool = True
    """Whether one matrix embeds source and target and is the output head too (section 3.4), or each has its own."""
    bias: bool = True
    """Whether the linear layers of attention and MLP have biases. The head has none."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("context", "encoder_layers", "decoder_layers", "width", "heads", "hidden")
        self.require_probability("dropout")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads: change one of them")
        if self.positions == "sinusoidal" and self.width % 2:
            raise ValueError(
                f"width {self.width} is odd, but sinusoidal positions are pairs of a sine and a cosine: "
                "make it even or set positions to learned"
            )

    def build(self) -> "TransformerSeq2Seq":
        return TransformerSeq2Seq(self)


class PostNorm(nn.Module):
    """norm(x + part(x)), dropout on the part."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(x_BTD + self.dropout(part(x_BTD)))


class PreNorm(PostNorm):
    """x + part(norm(x)), dropout on the part."""

    def forward(self, x_BTD: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BTD + self.dropout(part(self.norm(x_BTD)))


class EncoderBlock(nn.Module):
    """Every token of the source looks at all of it, then goes through the MLP.

    Args:
        residual: makes what adds each part's result to its input (PostNorm or PreNorm).
    """

    def __init__(
        self, width: int, heads: int, hidden: int, activation: str, bias: bool, residual: Callable[[], nn.Module]
    ):
        super().__init__()
        self.attention = CrossAttention(width, heads, bias)
        self.attention_residual = residual()
        self.mlp = MLP(width, hidden, activation, bias)
        self.mlp_residual = residual()

    def forward(self, x_BSD: Tensor, visible_B11S: Tensor | None) -> Tensor:
        x_BSD = self.attention_residual(x_BSD, lambda x: self.attention(x, self.attention.read(x, visible_B11S)))
        return self.mlp_residual(x_BSD, self.mlp)


class DecoderBlock(nn.Module):
    """A token of the target looks at those before it, then at the source, then goes through the MLP. Arguments as above."""

    def __init__(
        self, width: int, heads: int, hidden: int, activation: str, bias: bool, residual: Callable[[], nn.Module]
    ):
        super().__init__()
        self.attention = CausalSelfAttention(width, heads, bias=bias)
        self.attention_residual = residual()
        self.cross_attention = CrossAttention(width, heads, bias)
        self.cross_residual = residual()
        self.mlp = MLP(width, hidden, activation, bias)
        self.mlp_residual = residual()

    def forward(self, x_BTD: Tensor, memory: Memory, cache: LayerCache | None) -> Tensor:
        x_BTD = self.attention_residual(x_BTD, lambda x: self.attention(x, cache))
        x_BTD = self.cross_residual(x_BTD, lambda x: self.cross_attention(x, memory))
        return self.mlp_residual(x_BTD, self.mlp)


class Embedding(nn.Module):
    """Tokens, scaled up to the size of their positions (section 3.4), plus positions.

    Args:
        tokens: the table, which others may share.
        positions: called with (x_BTD, positions_T); gives their sum.
    """

    def __init__(self, tokens: nn.Embedding, positions: nn.Module, dropout: float):
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BT: Tensor, positions_T: Tensor) -> Tensor:
        x_BTD = self.tokens(tokens_BT) * math.sqrt(self.tokens.embedding_dim)
        return self.dropout(self.positions(x_BTD, positions_T))


def members(stack: nn.Module, kind: type[Part]) -> list[Part]:
    """All modules of a kind in a stack, from the bottom up."""
    return [module for module in stack.modules() if isinstance(module, kind)]


@dataclass(frozen=True)
class DecoderState:
    """What the decoder knows beside the tokens it is given, layer by layer."""

    memories: list[Memory]
    """The source, as each cross-attention sees it."""
    caches: list[LayerCache] | None = None
    """The target so far; None where it is given whole."""


class TransformerSeq2Seq(EncoderDecoder):
    config: TransformerSeq2SeqConfig
    has_blocks = True

    def __init__(self, config: TransformerSeq2SeqConfig):
        super().__init__()
        self.config = config
        self.context = config.context if config.positions == "learned" else None
        pre_norm = config.norm_order == "pre"
        residual = partial(PreNorm if pre_norm else PostNorm, config.width, config.dropout)
        hidden = config.hidden or 4 * config.width
        block = (config.width, config.heads, hidden, config.activation, config.bias, residual)
        target = nn.Embedding(config.vocab_size, config.width)
        source = target if config.tied else nn.Embedding(config.vocab_size, config.width)
        self.source_embedding = Embedding(source, self.build_positions(), config.dropout)
        self.encoder = nn.ModuleList(EncoderBlock(*block) for _ in range(config.encoder_layers))
        self.target_embedding = Embedding(target, self.build_positions(), config.dropout)
        self.decoder = nn.ModuleList(DecoderBlock(*block) for _ in range(config.decoder_layers))
        # A post-norm block ends in a norm as it is.
        self.encoder_norm = nn.LayerNorm(config.width) if pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.width) if pre_norm else nn.Identity()
        self.head = Head(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = target.weight
        self.apply(self.initialise)

    def build_positions(self) -> nn.Module:
        if self.config.positions == "learned":
            return LearnedPositions(self.config.context, self.config.width)
        return Sinusoids(self.config.width)

    def initialise(self, module: nn.Module) -> None:
        """Glorot & Bengio's uniform matrices and zero biases; embeddings and head N(0, 1/sqrt(D))."""
        # The paper does not say how its weights start; so they do in its code (tensor2tensor: `transformer_base_v1` has
        # "uniform_unit_scaling", `SymbolModality` the embeddings), where each projection is a matrix of its own.
        if isinstance(module, nn.Linear) and module is not self.head:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=self.config.width**-0.5)
        elif isinstance(module, CausalSelfAttention | CrossAttention):
            # `apply` reaches an attention after its projections, so this replaces what the fused ones drew as one.
            # By `apply`, too: where weights are born in parts (ZeRO stage 3), that is what gathers them.
            fused = module.query_key_value if isinstance(module, CausalSelfAttention) else module.key_value
            fused.apply(self.initialise_fused)

    def initialise_fused(self, projection: nn.Module) -> None:
        for matrix_DD in projection.get_parameter("weight").split(self.config.width):
            nn.init.xavier_uniform_(matrix_DD)

    def encode(self, source_BS: Tensor) -> DecoderState:
        visible_BS = source_BS != NO_TOKEN
        visible_BS[:, 0] = True  # A row without any token is read as one of number 0: no softmax is over nothing.
        visible_B11S = None if visible_BS.all() else visible_BS[:, None, None, :]
        x_BSD = self.source_embedding(source_BS.clamp(min=0), self.positions(source_BS))
        for number, block in enumerate(self.encoder):
            x_BSD = self.run_block(number, block, x_BSD, visible_B11S)
        x_BSD = self.encoder_norm(x_BSD)
        return DecoderState(
            [attention.read(x_BSD, visible_B11S) for attention in members(self.decoder, CrossAttention)]
        )

    def forward(
        self, tokens_BT: Tensor, state: DecoderState | None = None, targets: Targets | None = None
    ) -> tuple[Any, DecoderState]:
        """As `LanguageModel.forward`; `state` is needed. That of `encode` stays as it is: the target is given whole."""
        if state is None:
            raise ValueError(
                "The state is None, but this model predicts from a source: pass it through encode or init_state"
            )
        caches = state.caches or [None] * len(self.decoder)
        x_BTD = self.target_embedding(tokens_BT, self.positions(tokens_BT, caches[0]))
        for number, (block, *inputs) in enumerate(zip(self.decoder, state.memories, caches, strict=True)):
            x_BTD = self.run_block(number, block, x_BTD, *inputs)
        return self.head(self.decoder_norm(x_BTD), targets), state

    def positions(self, tokens_BT: Tensor, cache: LayerCache | None = None) -> Tensor:
        length = tokens_BT.shape[1]
        if self.context is not None and length > self.context:
            raise ValueError(f"{length} tokens are more than the model's context of {self.context}: shorten the input")
        return cache.next_positions(length) if cache else torch.arange(length, device=tokens_BT.device)

    def init_state(self, batch: int, length: int, source_BS: Tensor | None = None) -> DecoderState:
        if source_BS is None or len(source_BS) != batch:
            raise ValueError(f"{batch} targets need as many sources: give them as source_BS")
        weight = self.head.weight
        length = min(length, self.context or length)
        caches = [
            LayerCache(
                batch, attention.kv_heads, length, attention.head_width, device=weight.device, dtype=weight.dtype
            )
            for attention in members(self.decoder, CausalSelfAttention)
        ]
        return DecoderState(self.encode(source_BS).memories, caches)

    def select(self, state: DecoderState, rows_B: Tensor) -> DecoderState:
        caches = state.caches and [cache.select(rows_B) for cache in state.caches]
        return DecoderState([memory.select(rows_B) for memory in state.memories], caches)

    def attention_maps(self, tokens_BT: Tensor, source_BS: Tensor | None = None) -> dict[str, list[Tensor]]:
        if source_BS is None:
            raise ValueError("The source is None, but this model attends to one: give it as source_BS")
        maps: dict[str, list[Tensor]] = {"encoder": [], "self": [], "cross": []}

        def keep(kind: str, attention: CrossAttention | CausalSelfAttention, inputs: tuple) -> None:
            maps[kind].append(attention.weights(*inputs))

        with ExitStack() as hooks:
            for kind, attentions in {
                "encoder": members(self.encoder, CrossAttention),
                "self": members(self.decoder, CausalSelfAttention),
                "cross": members(self.decoder, CrossAttention),
            }.items():
                for attention in attentions:
                    hooks.callback(attention.register_forward_pre_hook(partial(keep, kind)).remove)
            self(tokens_BT, self.encode(source_BS))
        return maps

    def flops_per_token(self, context: int) -> int:
        """As `LanguageModel.flops_per_token`, for each target token, with a source as long as the target."""
        tables = {id(m.weight): m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding)}
        # A tied table multiplies once, as the head; one that is only looked up does not.
        tables.pop(id(self.head.weight), None)
        multiplied = sum(p.numel() for p in self.parameters()) - sum(tables.values())
        attentions = self.config.encoder_layers + 2 * self.config.decoder_layers
        return budget.transformer_flops_per_token(multiplied, attentions, self.config.width, context)
