"""Recurrent language models: an embedding, one of torch's recurrent networks, a head. Three families are one model."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import budget
from pipeline.layers.dropout import VariationalDropout
from pipeline.layers.head import Head
from pipeline.layers.recurrence import GRU, LSTM, RNN, Recurrent, State, VariationalStack
from pipeline.models.base import CausalModel, ModelConfig

# B batch, T time, D width, L layers, V vocabulary


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(ModelConfig):
    """What recurrent language models of all kinds of cell have in common."""

    layers: int
    """Number of recurrent layers."""
    width: int
    """D: size of each layer's hidden state."""
    embedding: Literal["learned", "one-hot"] = "learned"
    """A table of vectors, or for each token a vector of the vocabulary's size, a one at its number, else zeros."""
    embedding_width: int | None = None
    """Size of a learned embedding; the width when not given."""
    dropout: float = 0.0
    """Dropout probability on the embedding, between layers and before the head, not on the recurrence."""
    variational: bool = False
    """Whether dropout has one mask for all time steps (Gal & Ghahramani 2016), or draws anew at each."""
    tied: bool = True
    """Whether the head is the embedding table (Press & Wolf 2017)."""
    init_range: float | None = None
    """All parameters begin uniform within plus and minus this. None: embedding and head within 0.1, the recurrent
    weights within 1/sqrt(D), biases zero."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("layers", "width", "embedding_width")
        self.require_probability("dropout")
        if self.init_range is not None and self.init_range <= 0:
            raise ValueError(f"init_range is {self.init_range}: give a positive bound, or null for the default")
        if self.embedding == "one-hot" and (self.tied or self.embedding_width is not None):
            raise ValueError(
                f"embedding is one-hot, with tied {self.tied} and embedding_width {self.embedding_width}: it has no "
                "table to tie and no width to choose, so set tied to false and leave embedding_width out"
            )
        if self.tied and self.embedding_width not in (None, self.width):
            raise ValueError(
                f"embedding_width is {self.embedding_width}, width {self.width}: a tied head needs them equal, "
                "or set tied to false"
            )

    @abstractmethod
    def cell(self, input_width: int, layers: int, dropout: float) -> Recurrent:
        """This family's network."""

    def build(self) -> "RecurrentLanguageModel":
        return RecurrentLanguageModel(self)


@dataclass(frozen=True, kw_only=True)
class RNNConfig(RecurrentConfig):
    """A stack of simple recurrent layers (Elman 1990; as a language model Mikolov et al. 2010)."""

    family: ClassVar[str] = "rnn"

    activation: Literal["tanh", "relu"] = "tanh"
    """What is applied to the sum of input and recurrence."""
    identity: bool = False
    """Begin with identity recurrent weights, input weights N(0, 0.001) and zero biases (Le et al. 2015); for relu."""

    def __post_init__(self):
        super().__post_init__()
        if self.identity and (self.activation != "relu" or self.init_range is not None):
            raise ValueError(
                f"identity is true with activation {self.activation} and init_range {self.init_range}: it is an "
                "initialisation of its own for relu, so set activation to relu and leave init_range out"
            )

    def cell(self, input_width: int, layers: int, dropout: float) -> RNN:
        return RNN(
            input_width, self.width, layers, dropout=dropout, nonlinearity=self.activation, identity=self.identity
        )


@dataclass(frozen=True, kw_only=True)
class GRUConfig(RecurrentConfig):
    """A stack of gated recurrent units (Cho et al. 2014)."""

    family: ClassVar[str] = "gru"

    def cell(self, input_width: int, layers: int, dropout: float) -> GRU:
        return GRU(input_width, self.width, layers, dropout=dropout)


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    """A stack of long short-term memory layers (Hochreiter & Schmidhuber 1997; with dropout as Zaremba et al. 2014)."""

    family: ClassVar[str] = "lstm"

    forget_bias: float = 1.0
    """Added to the forget gate's bias at the beginning (Jozefowicz et al. 2015). Zaremba et al. have 0."""

    def cell(self, input_width: int, layers: int, dropout: float) -> LSTM:
        return LSTM(input_width, self.width, layers, dropout=dropout, forget_bias=self.forget_bias)


class OneHot(nn.Module):
    """tokens_BT -> x_BTV: one at the token's number, zero elsewhere."""

    one: Tensor

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        # A buffer, so that the vectors have the type of the model's weights.
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return F.one_hot(tokens_BT, self.vocab_size).to(self.one.dtype)


class RecurrentLanguageModel(CausalModel):
    config: RecurrentConfig
    carries_state = True

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.config = config
        self.token_embedding: nn.Module
        if config.embedding == "one-hot":
            input_width = config.vocab_size
            self.token_embedding = OneHot(config.vocab_size)
        else:
            input_width = config.embedding_width or config.width
            self.token_embedding = nn.Embedding(config.vocab_size, input_width)
        if config.variational:
            inputs = [input_width] + [config.width] * (config.layers - 1)
            self.dropout = VariationalDropout(config.dropout)
            self.rnn = VariationalStack([config.cell(width, 1, 0.0) for width in inputs], config.dropout)
        else:
            self.dropout = nn.Dropout(config.dropout)
            self.rnn = config.cell(input_width, config.layers, config.dropout)
        self.head = Head(config.width, config.vocab_size)
        if config.tied:
            self.head.weight = self.token_embedding.get_parameter("weight")
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        """See `init_range`, the forget bias of LSTMConfig and the identity of RNNConfig."""
        bound = self.config.init_range
        if isinstance(module, Recurrent):
            module.initialise(bound)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -(bound or 0.1), bound or 0.1)
        elif module is self.head:
            if not self.config.tied:
                nn.init.uniform_(module.get_parameter("weight"), -(bound or 0.1), bound or 0.1)
            nn.init.uniform_(module.get_parameter("bias"), -(bound or 0), bound or 0)

    def hidden(self, tokens_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        x_BTD, end = self.rnn(self.dropout(self.token_embedding(tokens_BT)), state)
        return self.dropout(x_BTD), end

    def init_state(self, batch: int, length: int, source_BS: Tensor | None = None) -> State:
        zeros_LBD = next(self.rnn.parameters()).new_zeros(self.config.layers, batch, self.config.width)
        return tuple(zeros_LBD.clone() for _ in range(self.rnn.states))

    def select(self, state: State, rows_B: Tensor) -> State:
        return tuple(part_LBD.index_select(1, rows_B) for part_LBD in state)

    def flops_per_token(self, context: int) -> int:
        """As `LanguageModel.flops_per_token`; of matrices only: no biases, no table that is only looked up."""
        matrices = [p for part in (self.rnn, self.head) for p in part.parameters() if p.dim() > 1]
        return budget.dense_flops_per_token(sum(p.numel() for p in matrices))
