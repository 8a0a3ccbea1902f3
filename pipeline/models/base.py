"""What every sequence model offers, whatever its family: a configuration that builds it, and one way to run it.

Training calls `forward(tokens_BT, state, targets)`, which gives the loss. Decoding calls `init_state` once and then `forward(tokens_BT, state)` with the tokens
that are new; what the state holds (a KV cache, a hidden vector, the memory of an encoder) is the family's own affair.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.layers.head import Head, Targets

# B batch, T time, S source time, H heads, V vocabulary

NO_TOKEN = -100
"""Fills places that hold no token: targets that no loss counts (torch's own default) and the end of a short source."""


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
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")

    def require_probability(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a probability must lie in [0, 1)")


class LanguageModel(nn.Module, ABC):
    """A model of the next token, given those before it and, for an encoder-decoder, a source."""

    config: ModelConfig
    context: int | None = None
    """The longest input, or None where there is no limit."""
    reads_source: ClassVar[bool] = False
    """Whether this is an encoder-decoder."""
    carries_state: ClassVar[bool] = False
    """Whether the state is of fixed size, a tuple of tensors (layers, B, width), so that it can be carried from one batch to
    the next over a stream of any length (truncated back-propagation through time)."""
    has_blocks: ClassVar[bool] = False
    """Whether the model is a stack of blocks, of which `run_block` runs each."""
    checkpoint_blocks: int = 0
    """Of every so many blocks the last is run again by the backward pass and keeps only its input; 0: of none."""

    graph_varies: ClassVar[bool] = False
    """Whether the order in which gradients come depends on the batch, so that it may differ from rank to rank."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, state: Any = None, targets: Targets | None = None) -> tuple[Any, Any]:
        """Return logits_BTV for the token after each position, or the `Scores` of targets, and the state after the last one.

        Args:
            tokens_BT: token ids, int64.
            state: from `init_state`, `encode` or an earlier call; the tokens then follow those that it has seen. None: a fresh
                start.
            targets: what follows each token; the logits of all positions together are then never held.
        """

    @abstractmethod
    def init_state(self, batch: int, length: int, source_BS: Tensor | None = None) -> Any:
        """A state for decoding `batch` sequences of at most `length` tokens each, prompt included.

        Args:
            source_BS: what an encoder-decoder reads, rows filled up on the right with NO_TOKEN; other models have none.
        """

    @abstractmethod
    def select(self, state: Any, rows_B: Tensor) -> Any:
        """The state of these rows of the batch, in this order and as often as they are named (int64), as tensors of its own."""

    @abstractmethod
    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to train on one token, forward and backward, in sequences of `context` tokens."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As torch's, but for the loss, which is left as it is."""
        for module in self.modules():
            if isinstance(module, Head):
                module.leave_uncompiled()
        super().compile(*args, **kwargs)

    def recompute_blocks(self, every: int) -> None:
        """Trade time for memory: set `checkpoint_blocks`. Raises ValueError for a model without blocks."""
        if not self.has_blocks:
            raise ValueError(
                f"checkpoint_blocks is {every}, but a {self.config.family} has no blocks to run again: set it to 0"
            )
        self.checkpoint_blocks = every

    def run_block(self, number: int, block: nn.Module, *inputs: Any) -> Tensor:
        """block(*inputs), or the same with its activations left to the backward pass (Chen et al. 2016).

        Args:
            number: of the block in its stack, from 0.
        """
        if self.checkpoint_blocks and (number + 1) % self.checkpoint_blocks == 0 and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return block(*inputs)

    def attention_maps(self, tokens_BT: Tensor, source_BS: Tensor | None = None) -> dict[str, list[Tensor]]:
        """Attention weights as probabilities, by kind ("self", "encoder", "cross"): a tensor_BHTS for each layer.

        Rows are the positions that look, columns those looked at. Empty for a model without attention.
        """
        return {}

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters: `total`, and `non_embedding` (without token and position tables; Kaplan et al. 2020)."""
        tables = {id(m.weight): m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding)}
        total = sum(p.numel() for p in self.parameters())
        return {"total": total, "non_embedding": total - sum(tables.values())}


class CausalModel(LanguageModel):
    """A model of one text from left to right, whose output head reads one vector a token; another head can be put on those."""

    head: nn.Module
    """Called as a module, always: what shards the weights gathers them where a module's own forward needs them."""

    @abstractmethod
    def hidden(self, tokens_BT: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As `forward`, but the vectors that the output head reads, x_BTD."""

    def forward(self, tokens_BT: Tensor, state: Any = None, targets: Targets | None = None) -> tuple[Any, Any]:
        x_BTD, state = self.hidden(tokens_BT, state)
        return self.head(x_BTD, targets), state


class EncoderDecoder(LanguageModel):
    """A model of a target, given a source that it has read whole."""

    reads_source = True

    @abstractmethod
    def encode(self, source_BS: Tensor) -> Any:
        """Read the source; return the state from which `forward` predicts a whole target at once, as training does.

        Args:
            source_BS: token ids, rows filled up on the right with NO_TOKEN, which nothing attends to.
        """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile `encode` too, which is called beside `forward`."""
        super().compile(*args, **kwargs)
        self.encode = torch.compile(self.encode, *args, **kwargs)
