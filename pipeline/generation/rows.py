"""Rows of tokens that a model reads and that decoding extends: what sampling and beam search have in common."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.models.base import NO_TOKEN, LanguageModel

# B batch, T time, S source time, V vocabulary

Item = TypeVar("Item")


class Rows:
    """Prompts and what follows them, advancing together from the shortest prompt's end.

    A longer prompt's own tokens take the place of new ones until it ends, so no row is padded. Where the model's context is
    full, the last part of the rows (half of the context or more) is read again as the beginning.

    Attributes:
        position: where the next token of each row goes.
    """

    def __init__(
        self, model: LanguageModel, prompts: list[list[int]], limits: list[int], sources: list[list[int]] | None = None
    ):
        """`limits` says how many tokens may follow each prompt, `sources` what an encoder-decoder reads."""
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt has no token: begin with the end-of-text token")
        if model.reads_source != (sources is not None) or len(sources or prompts) != len(prompts):
            wanted = "one source for each prompt" if model.reads_source else "no sources"
            given = "none" if sources is None else f"{len(sources)} for {len(prompts)} prompts"
            raise ValueError(f"the sources are {given}: a {type(model).__name__} takes {wanted}")
        device = next(model.parameters()).device
        self.model = model
        self.length = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        self.limit = min(model.context or self.length, self.length)
        self.source_BS = None if sources is None else padded(sources, NO_TOKEN, device)
        self.prompts_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.tokens_BT = padded([prompt + [0] * (self.length - len(prompt)) for prompt in prompts], 0, device)
        self.position = min(map(len, prompts))
        self.start = 0
        self.state = None

    @property
    def seen_BT(self) -> Tensor:
        """All tokens so far."""
        return self.tokens_BT[:, : self.position]

    def next_logits(self) -> Tensor:
        """logits_BV of the next token."""
        new_BT = self.tokens_BT[:, self.position - 1 : self.position]
        if self.state is None or self.position - self.start > self.limit:
            window = self.position
            if window > self.limit:
                # What no longer fits is left out from the left, with room for what is to come, half the context at most.
                window = self.limit - min(self.length - self.position, self.limit // 2)
            self.start = self.position - window
            room = min(self.limit, self.length - self.start)
            self.state = self.model.init_state(len(self.tokens_BT), room, self.source_BS)
            new_BT = self.tokens_BT[:, self.start : self.position]
        logits_BTV, self.state = self.model(new_BT, self.state)
        return logits_BTV[:, -1].float()

    def extend(self, tokens_B: Tensor) -> None:
        """Put a token at the end of each row; a row whose prompt goes on keeps the prompt's own."""
        given_B = self.tokens_BT[:, self.position]
        self.tokens_BT[:, self.position] = torch.where(self.prompts_B > self.position, given_B, tokens_B)
        self.position += 1

    def select(self, rows_B: Tensor) -> None:
        """Go on with these rows, in this order and as often as they are named."""
        self.tokens_BT, self.prompts_B = self.tokens_BT[rows_B], self.prompts_B[rows_B]
        self.source_BS = None if self.source_BS is None else self.source_BS[rows_B]
        self.state = self.model.select(self.state, rows_B)


def limits_of(max_new_tokens: int | Sequence[int], prompts: Sequence[list[int]]) -> list[int]:
    """The most tokens that may follow each prompt, from one number for all or one for each."""
    return [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)


def padded(rows: Sequence[Sequence[int]], filling: int, device: torch.device | None = None) -> Tensor:
    """Rows of different lengths as one tensor of int64, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)


def batches(items: Sequence[Item], length: Callable[[Item], int], batch_tokens: int) -> Iterator[list[Item]]:
    """Items of similar length together, at most `batch_tokens` with padding (or one item that is longer by itself).

    The longest come first: a run that does not fit in memory fails at once.
    """
    batch: list[Item] = []
    for item in sorted(items, key=length, reverse=True):
        if batch and (len(batch) + 1) * length(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
