"""Recurrent language models: an embedding, torch's LSTM, and a head tied to the embedding."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline import budget
from pipeline.models.base import LanguageModel, ModelConfig

# B batch, T time, D width, L layers, V vocabulary


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(ModelConfig):
    """A stack of long short-term memory layers (Hochreiter & Schmidhuber 1997; with dropout as Zaremba et al. 2014)."""

    family: ClassVar[str] = "lstm"

    layers: int
    """Number of LSTM layers."""
    width: int
    """D: size of the embedding and of each layer's hidden and cell state."""
    dropout: float = 0.0
    """Dropout probability on the embedding, between layers and before the head (not on the recurrence)."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("layers", "width")
        self.require_probability("dropout")

    def build(self) -> "LSTMLanguageModel":
        return LSTMLanguageModel(self)


class LSTMLanguageModel(LanguageModel):
    config: LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        between_layers = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.width, config.width, config.layers, batch_first=True, dropout=between_layers)
        self.head = nn.Linear(config.width, config.vocab_size)
        self.head.weight = self.token_embedding.weight
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        """Embeddings U(-0.1, 0.1) (Zaremba et al. 2014, section 4.1); U(-1/sqrt(D), 1/sqrt(D)) and a forget bias of 1 in the LSTM."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            for name, parameter in module.named_parameters():
                nn.init.uniform_(parameter, -bound, bound)
                if "bias" in name:
                    nn.init.zeros_(parameter)
                if "bias_ih" in name:
                    # Gates lie in torch's order: input, forget, cell, output. An open forget gate lets gradients pass.
                    parameter.data[module.hidden_size : 2 * module.hidden_size] = 1.0

    def forward(self, tokens_BT: Tensor, state: tuple[Tensor, Tensor] | None = None):
        x_BTD = self.dropout(self.token_embedding(tokens_BT))
        x_BTD, state = self.lstm(x_BTD, state)
        return self.head(self.dropout(x_BTD)), state

    def init_state(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        weight = self.token_embedding.weight
        zeros_LBD = torch.zeros(self.config.layers, batch, self.config.width, device=weight.device, dtype=weight.dtype)
        return zeros_LBD, zeros_LBD.clone()

    def flops_per_token(self, context: int) -> int:
        return budget.dense_flops_per_token(sum(p.numel() for p in self.parameters()))
