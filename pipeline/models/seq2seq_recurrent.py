"""Recurrent encoder-decoders, with and without attention: those of Sutskever et al. 2014, Bahdanau et al. 2015 and
Luong et al. 2015 as settings of one model. The decoder runs over the target by itself, then all its states attend to
the source at once, as Luong et al. have it.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pipeline import budget
from pipeline.layers.alignment import (
    AdditiveScore,
    Attention,
    DotScore,
    GlobalFocus,
    Memory,
    MonotonicFocus,
    MultiplicativeScore,
    NoAttention,
    PredictiveFocus,
)
from pipeline.layers.head import Head, Targets
from pipeline.layers.recurrence import GRU, LSTM, Recurrent, State
from pipeline.models.base import NO_TOKEN, EncoderDecoder, ModelConfig

# B batch, T target time, S source time, D width, E width of all directions together, L layers, V vocabulary

SCORES = {"dot": DotScore, "multiplicative": MultiplicativeScore, "additive": AdditiveScore}


@dataclass(frozen=True, kw_only=True)
class RecurrentSeq2SeqConfig(ModelConfig):
    """A recurrent encoder and decoder (Luong et al. 2015, without input feeding)."""

    family: ClassVar[str] = "seq2seq_recurrent"

    cell: Literal["gru", "lstm"]
    """The recurrent layers of both."""
    layers: int
    """Number of layers, in the encoder as in the decoder."""
    width: int
    """D: size of a layer's hidden state, of each direction in the encoder."""
    embedding_width: int | None = None
    """Size of the embeddings; the width when not given."""
    bidirectional: bool = False
    """Whether the encoder reads the source from both ends; its outputs are then projected to the decoder's width."""
    attention: Literal["none", "dot", "multiplicative", "additive"] = "multiplicative"
    """How encoder state h and decoder state s are scored: s·h, s·Wh or v·tanh(W1 h + W2 s). None: the decoder only
    begins where the encoder ended."""
    window: int | None = None
    """Local attention: places seen on either side of a centre (Luong et al. 2015, section 3.2). All when not given."""
    alignment: Literal["predictive", "monotonic"] = "predictive"
    """The centre of the window: predicted from the decoder state, under a Gaussian, or the target's own position."""
    dropout: float = 0.0
    """Dropout probability on embeddings, between layers and before the head, not on the recurrence."""
    tied: bool = True
    """Whether the head is the target's embedding table."""
    shared_embedding: bool = True
    """Whether source and target have one embedding table."""
    init_range: float = 0.1
    """Parameters begin uniform within plus and minus this (Luong et al. 2015, section 4.1); embeddings of fewer than their
    1,000 features within sqrt(1000 / features) times as much, so that a token's vector is as long as theirs."""
    forget_bias: float = 1.0
    """Of an LSTM: added to the forget gate's bias at the beginning."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("layers", "width", "embedding_width", "window")
        self.require_probability("dropout")
        if self.init_range <= 0:
            raise ValueError(f"init_range is {self.init_range}: it must be a positive bound")
        if self.window is not None and self.attention == "none":
            raise ValueError(
                f"window is {self.window}, but attention is none: choose an attention or leave the window out"
            )
        if self.tied and self.embedding_width not in (None, self.width):
            raise ValueError(
                f"embedding_width is {self.embedding_width}, width {self.width}: a tied head needs them equal, "
                "or set tied to false"
            )

    def build(self) -> "RecurrentSeq2Seq":
        return RecurrentSeq2Seq(self)


class Bridge(nn.Module):
    """The last states of both directions to the first of the decoder, a projection for each layer: LBE -> LBD."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers))

    def forward(self, state_LBE: Tensor) -> Tensor:
        return torch.stack([project(x_BE) for project, x_BE in zip(self.layers, state_LBE, strict=True)])


class Encoder(nn.Module):
    """Reads the source, each row to its own end.

    Args:
        rnn: D wide, of one direction or two.
    """

    def __init__(self, rnn: Recurrent):
        super().__init__()
        self.rnn = rnn
        bridges = [nn.Identity() for _ in range(rnn.states)]
        if rnn.bidirectional:
            width, layers = rnn.hidden_size, rnn.num_layers
            # tanh for the hidden state, as in Bahdanau et al. 2015, appendix A.2.2; a cell is not bounded.
            bridges = [nn.Sequential(Bridge(width, layers), nn.Tanh()), Bridge(width, layers)][: rnn.states]
        self.bridges = nn.ModuleList(bridges)

    def forward(self, x_BSD: Tensor, lengths_B: Tensor) -> tuple[Tensor, State]:
        """Return memory_BSE, cut to the longest row, and the decoder's first state.

        Args:
            lengths_B: tokens of each row, at least 1; what lies behind them changes nothing.
        """
        lengths_B = lengths_B.cpu()
        if int(lengths_B.min()) == x_BSD.shape[1]:
            # Nothing to pack, which costs a fifth of a training step.
            memory_BSE, state = self.rnn(x_BSD)
        else:
            packed = pack_padded_sequence(x_BSD, lengths_B, batch_first=True, enforce_sorted=False)
            outputs, state = self.rnn(packed)
            memory_BSE, _ = pad_packed_sequence(outputs, batch_first=True)
        directions = 2 if self.rnn.bidirectional else 1
        # torch has the directions of a layer one after the other in the first dimension.
        sides = (part.unflatten(0, (-1, directions)).transpose(1, 2).flatten(2) for part in state)
        return memory_BSE, tuple(bridge(side_LBE) for bridge, side_LBE in zip(self.bridges, sides, strict=True))


@dataclass(frozen=True)
class DecoderState:
    """What the decoder knows beside the tokens it is given."""

    hidden: State
    memory: Memory | None
    """The source, as attention sees it."""
    seen: int = 0
    """Target tokens so far."""


class RecurrentSeq2Seq(EncoderDecoder):
    # Of packed rows, and of packed rows all alike, torch's gradients come in other orders than of rows unpacked.
    graph_varies = True

    config: RecurrentSeq2SeqConfig

    def __init__(self, config: RecurrentSeq2SeqConfig):
        super().__init__()
        self.config = config
        input_width = config.embedding_width or config.width
        self.target_embedding = nn.Embedding(config.vocab_size, input_width)
        self.source_embedding = self.target_embedding
        if not config.shared_embedding:
            self.source_embedding = nn.Embedding(config.vocab_size, input_width)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(self.build_cells(input_width, bidirectional=config.bidirectional))
        self.decoder = self.build_cells(input_width)
        self.attention = self.build_attention()
        self.head = Head(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.target_embedding.weight
        self.apply(self.initialise)

    def build_cells(self, input_width: int, *, bidirectional: bool = False) -> Recurrent:
        config = self.config
        sizes, options = (input_width, config.width, config.layers), {"bidirectional": bidirectional}
        if config.cell == "gru":
            return GRU(*sizes, dropout=config.dropout, **options)
        return LSTM(*sizes, dropout=config.dropout, forget_bias=config.forget_bias, **options)

    def build_attention(self) -> Attention | NoAttention:
        if self.config.attention == "none":
            return NoAttention()
        width, window = self.config.width, self.config.window
        focus = GlobalFocus()
        if window is not None:
            focus = MonotonicFocus(window) if self.config.alignment == "monotonic" else PredictiveFocus(width, window)
        memory_width = 2 * width if self.config.bidirectional else width
        return Attention(width, memory_width, SCORES[self.config.attention](width), focus)

    def initialise(self, module: nn.Module) -> None:
        """See `init_range` and `forget_bias`."""
        bound = self.config.init_range
        if isinstance(module, Recurrent):
            module.initialise(bound)
        elif isinstance(module, nn.Embedding):
            # Short vectors hardly reach a narrow network: it then stays for long with what it can say without its input.
            length = max(1.0, math.sqrt(1000 / module.embedding_dim))
            nn.init.uniform_(module.weight, -bound * length, bound * length)
        elif isinstance(module, nn.Linear) and not (module is self.head and self.config.tied):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def encode(self, source_BS: Tensor) -> DecoderState:
        # A row without any token is read as one of number 0: there is no recurrence over nothing.
        lengths_B = (source_BS != NO_TOKEN).sum(1).clamp(min=1)
        x_BSD = self.dropout(self.source_embedding(source_BS.clamp(min=0)))
        memory_BSE, hidden = self.encoder(x_BSD, lengths_B)
        mask_BS = torch.arange(memory_BSE.shape[1], device=source_BS.device) < lengths_B[:, None]
        return DecoderState(hidden, self.attention.read(memory_BSE, mask_BS))

    def attend(self, tokens_BT: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Return what the head reads, x_BTD, the attention weights_BTS, and the state after the last token."""
        x_BTD, hidden = self.decoder(self.dropout(self.target_embedding(tokens_BT)), state.hidden)
        x_BTD, weights_BTS = self.attention(x_BTD, state.memory, state.seen)
        return self.dropout(x_BTD), weights_BTS, DecoderState(hidden, state.memory, state.seen + tokens_BT.shape[1])

    def forward(
        self, tokens_BT: Tensor, state: DecoderState | None = None, targets: Targets | None = None
    ) -> tuple[Any, DecoderState]:
        """As `LanguageModel.forward`; `state` is needed."""
        if state is None:
            raise ValueError(
                "The state is None, but this model predicts from a source: pass it through encode or init_state"
            )
        x_BTD, _, state = self.attend(tokens_BT, state)
        return self.head(x_BTD, targets), state

    def init_state(self, batch: int, length: int, source_BS: Tensor | None = None) -> DecoderState:
        if source_BS is None or len(source_BS) != batch:
            raise ValueError(f"{batch} targets need as many sources: give them as source_BS")
        return self.encode(source_BS)

    def select(self, state: DecoderState, rows_B: Tensor) -> DecoderState:
        hidden = tuple(part_LBD.index_select(1, rows_B) for part_LBD in state.hidden)
        return DecoderState(hidden, state.memory and state.memory.select(rows_B), state.seen)

    def attention_maps(self, tokens_BT: Tensor, source_BS: Tensor | None = None) -> dict[str, list[Tensor]]:
        """As `LanguageModel.attention_maps`, "cross" alone. Rows of a predicted window add up to less than 1."""
        if source_BS is None:
            raise ValueError("The source is None, but this model attends to one: give it as source_BS")
        _, weights_BTS, _ = self.attend(tokens_BT, self.encode(source_BS))
        if weights_BTS is None:
            return {}
        return {"cross": [F.pad(weights_BTS, (0, source_BS.shape[1] - weights_BTS.shape[2]))[:, None]]}

    def flops_per_token(self, context: int) -> int:
        """As `LanguageModel.flops_per_token`, for each target token, with a source as long as the target.

        Of matrices only: no biases, no table that is only looked up, nor the bridges, which are used once a sequence.
        """
        parts = (self.encoder.rnn, self.decoder, self.attention, self.head)
        multiplied = sum(p.numel() for part in parts for p in part.parameters() if p.dim() > 1)
        if self.config.attention == "none":
            return budget.dense_flops_per_token(multiplied)
        # A token's score with each place of the source, and that place's share in the context.
        return budget.dense_flops_per_token(multiplied + 2 * self.config.width * context)
