"""How a model takes a request's context: a decoder-only model as the beginning of the text, an encoder-decoder as its source."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.generation.rows import padded
from pipeline.models.base import NO_TOKEN, CausalModel, EncoderDecoder, LanguageModel

# B batch, T time, N positions whose next token is asked for, X what the head reads there, V vocabulary

Tokens = tuple[int, ...]

LEAST_COMMON = 16
"""Contexts of a batch that begin alike for fewer tokens are read row by row: one more pass would cost more."""


class Contexts(Protocol):
    """What the harness adapter needs to know of a family; lengths are in tokens."""

    backend: str
    """The harness's word for the family, by which it splits texts into context and continuation."""
    evenness: float
    """The least share of the longest context that others in its batch should have, where several continuations are read."""
    device: torch.device

    def cut(self, context: list[int], continuation: list[int], longest: int) -> tuple[Tokens, Tokens, int]:
        """Context and continuation without what exceeds the longest input, and how many tokens that was."""
        ...

    def running(self, tokens: list[int]) -> list[int]:
        """The tokens of a text that is scored by itself."""
        ...

    def window(self, context: list[int], continuation: list[int]) -> tuple[Tokens, Tokens]:
        """The same for a window of running text, which fits; the tokens before it are what there is of a context."""
        ...

    def read(self, contexts: list[Tokens], continuations: int, length: int) -> tuple[Any, list[Tokens]]:
        """Read contexts once for up to so many continuations each; what all of them begin with, once for all.

        Args:
            length: of the longest context with its longest continuation.

        Returns:
            A state, and for each context what is to be fed before a continuation; its last token predicts the first of that.
        """
        ...

    def branch(self, state: Any, rows: Sequence[int], whole: bool, last: bool) -> Any:
        """The state for one continuation of each of these rows of the batch; what comes of it changes no other.

        Args:
            whole: whether these are all rows, in their order.
            last: whether the state is not needed any more.
        """
        ...

    def vectors(self, inputs_BT: Tensor, state: Any, wanted_BT: Tensor) -> Tensor:
        """x_NX: of each wanted position, row by row, what `logits` reads."""
        ...

    def logits(self, x_NX: Tensor) -> Tensor:
        """logits_NV of what follows."""
        ...

    def room(self, asked: int, longest: int) -> int:
        """How many new tokens an answer may have where so many are asked for."""
        ...

    def prompt(self, context: list[int], room: int, longest: int) -> tuple[list[int], int]:
        """The context of an answer, cut so that the answer has room, and how many tokens that took."""
        ...

    def decoding(self, prompts: list[list[int]]) -> dict[str, Any]:
        """The prompts as arguments of `decode`."""
        ...


class TextContexts:
    """Context and continuation are one text, which loses its beginning where it is too long."""

    backend = "causal"
    # Contexts are read together as far as the shortest reaches, and their rests once for each continuation.
    evenness = 0.85

    def __init__(self, model: LanguageModel, end_of_text: int):
        self.model, self.end_of_text = model, end_of_text
        self.device = next(model.parameters()).device

    def cut(self, context: list[int], continuation: list[int], longest: int) -> tuple[Tokens, Tokens, int]:
        # The last token is predicted and not read, so the text may be longer by one.
        tokens = (*context, *continuation)[-(longest + 1) :]
        boundary = max(1, len(tokens) - len(continuation))
        return tokens[:boundary], tokens[boundary:], len(context) + len(continuation) - len(tokens)

    def running(self, tokens: list[int]) -> list[int]:
        return tokens

    def window(self, context: list[int], continuation: list[int]) -> tuple[Tokens, Tokens]:
        return tuple(context), tuple(continuation)

    def read(self, contexts: list[Tokens], continuations: int, length: int) -> tuple[Any, list[Tokens]]:
        # The last token of each context is read with the continuation, for it predicts the first token of that.
        longest = min(map(len, contexts)) - 1
        shared = longest if continuations > 1 else 0
        common, state = common_beginning(contexts, longest), None
        if len(contexts) > 1 and common >= LEAST_COMMON:
            state = self.take_in([contexts[0][:common]], self.model.init_state(1, length))
            state = self.model.select(state, torch.zeros(len(contexts), dtype=torch.long, device=self.device))
            shared = max(shared, common)
        else:
            common = 0
        if shared > common:
            state = state or self.model.init_state(len(contexts), length)
            state = self.take_in([context[common:shared] for context in contexts], state)
        return state, [context[shared:] for context in contexts]

    def take_in(self, rows: list[Tokens], state: Any) -> Any:
        """The state after these tokens."""
        tokens_BT = torch.tensor(rows, device=self.device)
        # Nothing asks for their logits, which in a small model would be most of the work.
        return self.hidden(tokens_BT, state)[1]

    def hidden(self, tokens_BT: Tensor, state: Any) -> tuple[Tensor, Any]:
        if isinstance(self.model, CausalModel):
            return self.model.hidden(tokens_BT, state)
        return self.model(tokens_BT, state)

    def branch(self, state: Any, rows: Sequence[int], whole: bool, last: bool) -> Any:
        if state is None or (whole and last):
            return state
        return self.model.select(state, torch.tensor(rows, device=self.device))

    def vectors(self, inputs_BT: Tensor, state: Any, wanted_BT: Tensor) -> Tensor:
        return self.hidden(inputs_BT, state)[0][wanted_BT]

    def logits(self, x_NX: Tensor) -> Tensor:
        return self.model.head(x_NX) if isinstance(self.model, CausalModel) else x_NX

    def room(self, asked: int, longest: int) -> int:
        return asked if asked < longest else longest // 2

    def prompt(self, context: list[int], room: int, longest: int) -> tuple[list[int], int]:
        return context[-(longest - room) :], max(0, len(context) - (longest - room))

    def decoding(self, prompts: list[list[int]]) -> dict[str, Any]:
        return {"prompts": prompts}


class SourceContexts:
    """The context is the source, and ends in end-of-text as every source does; the continuation is the beginning of a target."""

    backend = "seq2seq"
    evenness = 0.0

    def __init__(self, model: EncoderDecoder, end_of_text: int):
        self.model, self.end_of_text = model, end_of_text
        self.device = next(model.parameters()).device

    def cut(self, context: list[int], continuation: list[int], longest: int) -> tuple[Tokens, Tokens, int]:
        source, lost = self.prompt(context, 0, longest)
        target = tuple(continuation[-longest:])
        return tuple(source), target, lost + len(continuation) - len(target)

    def running(self, tokens: list[int]) -> list[int]:
        # A target, which ends so as a source does.
        return [*tokens, self.end_of_text]

    def window(self, context: list[int], continuation: list[int]) -> tuple[Tokens, Tokens]:
        return tuple(context), tuple(continuation)

    def read(self, contexts: list[Tokens], continuations: int, length: int) -> tuple[Any, list[Tokens]]:
        return self.model.encode(padded(contexts, NO_TOKEN, self.device)), [(self.end_of_text,)] * len(contexts)

    def branch(self, state: Any, rows: Sequence[int], whole: bool, last: bool) -> Any:
        # A target that is given whole leaves the state of its source as it is.
        return state if whole else self.model.select(state, torch.tensor(rows, device=self.device))

    def vectors(self, inputs_BT: Tensor, state: Any, wanted_BT: Tensor) -> Tensor:
        return self.model(inputs_BT, state)[0][wanted_BT]

    def logits(self, x_NX: Tensor) -> Tensor:
        return x_NX

    def room(self, asked: int, longest: int) -> int:
        return min(asked, longest)

    def prompt(self, context: list[int], room: int, longest: int) -> tuple[list[int], int]:
        # The harness gives an empty context as the end-of-text token.
        tokens = context if context != [self.end_of_text] else []
        lost = max(0, len(tokens) + 1 - longest)
        return [*tokens[lost:], self.end_of_text], lost

    def decoding(self, prompts: list[list[int]]) -> dict[str, Any]:
        return {"prompts": [[self.end_of_text]] * len(prompts), "sources": prompts}


def common_beginning(contexts: list[Tokens], longest: int) -> int:
    """How many tokens all contexts begin with, at most `longest`."""
    first, last = min(contexts), max(contexts)  # in the order of dictionaries; all others lie between them
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or i == longest), longest)


def contexts_of(model: LanguageModel, end_of_text: int) -> Contexts:
    return SourceContexts(model, end_of_text) if isinstance(model, EncoderDecoder) else TextContexts(model, end_of_text)
