"""What every language model offers, whatever its family: a configuration that builds it, and one way to run it.

Training calls `forward(tokens_BT)`. Decoding calls `init_state` once and then `forward(tokens_BT, state)` with the tokens
that are new; what the state holds (a KV cache, a hidden vector) is the family's own affair.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

# B batch, T time, V vocabulary


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The shape of a model; one frozen subclass a family."""

    family: ClassVar[str]

    vocab_size: int
    """Number of token ids. It must equal the vocabulary of the shards (see their manifest.json)."""

    def __post_init__(self):
        self.require_positive("vocab_size")

    @abstractmethod
    def build(self) -> "LanguageModel":
        """A freshly initialised model of this shape, on torch's default device."""

    def require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def require_probability(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a probability must lie in [0, 1)")


class LanguageModel(nn.Module, ABC):
    """A causal language model."""

    config: ModelConfig
    context: int | None = None
    """The longest input, or None where there is no limit."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return logits_BTV for the token after each position, and the state after the last one.

        Args:
            tokens_BT: token ids, int64.
            state: from `init_state` or an earlier call; the tokens then follow those that it has seen. None: a fresh start.
        """

    @abstractmethod
    def init_state(self, batch: int, length: int) -> Any:
        """A state for decoding `batch` sequences of at most `length` tokens each, prompt included."""

    @abstractmethod
    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to train on one token, forward and backward, in sequences of `context` tokens."""

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters: `total`, and `non_embedding` (without token and position tables; Kaplan et al. 2020)."""
        tables = {id(m.weight): m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding)}
        total = sum(p.numel() for p in self.parameters())
        return {"total": total, "non_embedding": total - sum(tables.values())}
