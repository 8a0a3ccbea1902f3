"""How a model takes a request's context: a decoder-only model as the beginning of the text, an encoder-decoder as its source."""

from typing import Any, Protocol

import torch

from pipeline.generation.rows import padded
from pipeline.models.base import NO_TOKEN, EncoderDecoder, LanguageModel

Tokens = tuple[int, ...]


class Contexts(Protocol):
    """What the harness adapter needs to know of a family; lengths are in tokens."""

    backend: str
    """The harness's word for the family, by which it splits texts into context and continuation."""

    def cut(self, context: list[int], continuation: list[int], longest: int) -> tuple[Tokens, Tokens, int]:
        """Context and continuation without what exceeds the longest input, and how many tokens that was."""
        ...

    def read(self, contexts: list[Tokens], continuations: int, length: int) -> tuple[Any, list[Tokens]]:
        """Read contexts once for up to so many continuations each.

        Args:
            length: of the longest context with its longest continuation.

        Returns:
            A state, and for each context what is to be fed before a continuation; its last token predicts the first of that.
        """
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

    def __init__(self, model: LanguageModel, end_of_text: int):
        self.model, self.end_of_text = model, end_of_text
        self.device = next(model.parameters()).device

    def cut(self, context: list[int], continuation: list[int], longest: int) -> tuple[Tokens, Tokens, int]:
        # The last token is predicted and not read, so the text may be longer by one.
        tokens = (*context, *continuation)[-(longest + 1) :]
        boundary = max(1, len(tokens) - len(continuation))
        return tokens[:boundary], tokens[boundary:], len(context) + len(continuation) - len(tokens)

    def read(self, contexts: list[Tokens], continuations: int, length: int) -> tuple[Any, list[Tokens]]:
        # The last token of each context is read with the continuation, for it predicts the first token of that.
        shared = min(map(len, contexts)) - 1 if continuations > 1 else 0
        state = None
        if shared:
            state = self.model.init_state(len(contexts), length)
            tokens_BT = torch.tensor([context[:shared] for context in contexts], device=self.device)
            _, state = self.model(tokens_BT, state)
        return state, [context[shared:] for context in contexts]

    def room(self, asked: int, longest: int) -> int:
        return asked if asked < longest else longest // 2

    def prompt(self, context: list[int], room: int, longest: int) -> tuple[list[int], int]:
        return context[-(longest - room) :], max(0, len(context) - (longest - room))

    def decoding(self, prompts: list[list[int]]) -> dict[str, Any]:
        return {"prompts": prompts}


class SourceContexts:
    """The context is the source, and ends in end-of-text as every source does; the continuation is the beginning of a target."""

    backend = "seq2seq"

    def __init__(self, model: EncoderDecoder, end_of_text: int):
        self.model, self.end_of_text = model, end_of_text
        self.device = next(model.parameters()).device

    def cut(self, context: list[int], continuation: list[int], longest: int) -> tuple[Tokens, Tokens, int]:
        source, lost = self.prompt(context, 0, longest)
        target = tuple(continuation[-longest:])
        return tuple(source), target, lost + len(continuation) - len(target)

    def read(self, contexts: list[Tokens], continuations: int, length: int) -> tuple[Any, list[Tokens]]:
        return self.model.encode(padded(contexts, NO_TOKEN, self.device)), [(self.end_of_text,)] * len(contexts)

    def room(self, asked: int, longest: int) -> int:
        return min(asked, longest)

    def prompt(self, context: list[int], room: int, longest: int) -> tuple[list[int], int]:
        # The harness gives an empty context as the end-of-text token.
        tokens = context if context != [self.end_of_text] else []
        lost = max(0, len(tokens) + 1 - longest)
        return [*tokens[lost:], self.end_of_text], lost

    def decoding(self, prompts: list[list[int]]) -> dict[str, Any]:
        return {"prompts": [[self.end_of_text]] * len(prompts), "sources": prompts}


def contexts_of(model: LanguageModel, end_of_text: int) -> Contexts:
    return SourceContexts(model, end_of_text) if isinstance(model, EncoderDecoder) else TextContexts(model, end_of_text)
