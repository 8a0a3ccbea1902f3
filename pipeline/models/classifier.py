"""Many-to-one: a language model that reads a text, with a head that says which class it is of."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline import budget
from pipeline.layers.head import Head, Targets
from pipeline.models.base import CausalModel, LanguageModel, ModelConfig

# B batch, T time, S source time, D width, C classes


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(ModelConfig):
    """A class for a text: a linear layer on what a causal language model knows at the text's last token (Radford et al. 2018,
    section 3.2; on a recurrent one, its last state)."""

    family: ClassVar[str] = "classifier"

    body: ModelConfig
    """The language model that reads, of the same vocab_size; its own output head is left out."""
    classes: int
    """C: number of classes."""
    dropout: float = 0.0
    """Dropout probability on what the head reads, beside the body's own."""

    def __post_init__(self):
        super().__post_init__()
        self.require_probability("dropout")
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}: there must be at least 2 to tell apart")
        if self.body.vocab_size != self.vocab_size:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, that of the body {self.body.vocab_size}: make them equal"
            )
        if not isinstance(self.body_on_meta(), CausalModel):
            raise ValueError(
                f"The body is a {self.body.family}, which hands over no hidden states: take a causal language model"
            )

    def body_on_meta(self) -> LanguageModel:
        """The body whole, with its own head, as shapes without numbers."""
        with torch.device("meta"):
            return self.body.build()

    def build(self) -> "Classifier":
        return Classifier(self)


class Classifier(LanguageModel):
    """`forward` returns logits_BTC, the class of the text up to each position; the targets say which position counts."""

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        body = config.body.build()
        assert isinstance(body, CausalModel), "the configuration refuses others"
        self.body, self.context = body, body.context
        assert isinstance(body.head, nn.Linear)
        self.head = Head(body.head.in_features, config.classes)
        # Parameters without gradients would stall data-parallel training. A table that was tied to the body's head stays as the
        # embedding's.
        self.body.head = nn.Identity()
        # By `apply`: where weights are born in parts (ZeRO stage 3), that is what gathers them.
        self.head.apply(self.initialise)
        self.dropout = nn.Dropout(config.dropout)

    def initialise(self, head: nn.Module) -> None:
        """As GPT-1 starts its weights; it names nothing else for this layer."""
        nn.init.normal_(head.get_parameter("weight"), std=0.02)
        nn.init.zeros_(head.get_parameter("bias"))

    def forward(self, tokens_BT: Tensor, state: Any = None, targets: Targets | None = None) -> tuple[Any, Any]:
        x_BTD, state = self.body.hidden(tokens_BT, state)
        return self.head(self.dropout(x_BTD), targets), state

    def init_state(self, batch: int, length: int, source_BS: Tensor | None = None) -> Any:
        return self.body.init_state(batch, length, source_BS)

    def select(self, state: Any, rows_B: Tensor) -> Any:
        return self.body.select(state, rows_B)

    def recompute_blocks(self, every: int) -> None:
        self.body.recompute_blocks(every)

    def attention_maps(self, tokens_BT: Tensor, source_BS: Tensor | None = None) -> dict[str, list[Tensor]]:
        return self.body.attention_maps(tokens_BT, source_BS)

    def flops_per_token(self, context: int) -> int:
        body = self.config.body_on_meta()
        # As the body alone, but for the matrix of this head in place of its own.
        exchanged = self.head.weight.numel() - body.get_parameter("head.weight").numel()
        return body.flops_per_token(context) + budget.dense_flops_per_token(exchanged)
