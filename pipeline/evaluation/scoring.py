"""Log-likelihoods of a batch of questions: each context is read once for all that may follow it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.contexts import Contexts, Tokens
from pipeline.generation.rows import batches, padded

# B batch, T time, N positions whose next token is asked for, X what the head reads there, V vocabulary

POSITIONS_HELD = 256
"""Positions whose logits are held at a time."""

Likelihood = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding writes the same."""


class Question(NamedTuple):
    """A context and all that may follow it."""

    context: Tokens
    continuations: dict[Tokens, list[Tokens]]
    """By what is read of them, all but the last token: those of one token share all their input."""

    @property
    def length(self) -> int:
        """Of the longest input in tokens."""
        return len(self.context) + max(map(len, self.continuations))


def in_batches(questions: list[Question], batch_tokens: int, evenness: float) -> Iterator[list[Question]]:
    """Questions of similar length together, the longest first, at most `batch_tokens` with padding (or one that is longer).

    Args:
        evenness: the least share of the longest context in a batch that others with several continuations have.
    """
    for batch in batches(questions, lambda question: question.length, batch_tokens):
        while batch:
            least, several = evenness * len(batch[0].context), any(len(each.continuations) > 1 for each in batch)
            end = next((i for i, each in enumerate(batch) if several and len(each.context) < least), len(batch))
            yield batch[:end]
            batch = batch[end:]


@torch.inference_mode()
def log_likelihoods(contexts: Contexts, questions: list[Question], filling: int) -> list[dict[Tokens, Likelihood]]:
    """Of each question's continuations. One without tokens has likelihood 1.

    Args:
        filling: a token for the right ends of short rows, which no score sees.
    """
    tails = [list(question.continuations) for question in questions]
    turns = max(map(len, tails))
    state, heads = contexts.read(
        [question.context for question in questions], turns, max(question.length for question in questions)
    )
    results: list[dict[Tokens, Likelihood]] = [{} for _ in questions]
    for turn in range(turns):
        rows = [row for row, own in enumerate(tails) if turn < len(own)]
        own = contexts.branch(state, rows, whole=len(rows) == len(questions), last=turn == turns - 1)
        inputs = [heads[row] + tails[row][turn] for row in rows]
        # A model's prediction at a position does not see the filling to its right.
        inputs_BT = padded(inputs, filling, contexts.device)
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
        for place, (row, tokens) in enumerate(zip(rows, inputs, strict=True)):
            wanted_BT[place, len(heads[row]) - 1 : len(tokens)] = True
        asked = [(row, target) for row in rows for target in questions[row].continuations[tails[row][turn]]]
        starts = place_of_rows([len(tails[row][turn]) + 1 for row in rows], rows)
        places = [starts[row] + i for row, target in asked for i in range(len(target))]
        tokens = [token for _, target in asked for token in target]
        found = of_tokens(contexts, contexts.vectors(inputs_BT, own, wanted_BT), places, tokens)
        for row, target in asked:
            scores = [next(found) for _ in target]
            results[row][target] = sum(score for score, _ in scores), all(best for _, best in scores)
    return results


def place_of_rows(lengths: list[int], rows: list[int]) -> dict[int, int]:
    """Where each row begins among the positions of all."""
    starts, start = {}, 0
    for row, length in zip(rows, lengths, strict=True):
        starts[row] = start
        start += length
    return starts


def of_tokens(contexts: Contexts, x_NX: Tensor, places: list[int], tokens: list[int]) -> Iterator[Likelihood]:
    """Of each token at its place among the N positions: log-likelihood, and whether it is the likeliest."""
    place_K, token_K = (torch.tensor(each, dtype=torch.long, device=x_NX.device) for each in (places, tokens))
    score_K = torch.zeros(len(places), dtype=torch.float32, device=x_NX.device)
    best_K = torch.zeros(len(places), dtype=torch.bool, device=x_NX.device)
    for start in range(0, len(x_NX), POSITIONS_HELD):
        logits_NV = contexts.logits(x_NX[start : start + POSITIONS_HELD]).float()
        log_z_N, likeliest_N = logits_NV.logsumexp(-1), logits_NV.argmax(-1)
        here_K = (place_K >= start) & (place_K < start + POSITIONS_HELD)
        at, token = place_K[here_K] - start, token_K[here_K]
        score_K[here_K] = logits_NV[at, token] - log_z_N[at]
        best_K[here_K] = likeliest_N[at] == token
    yield from zip(score_K.tolist(), best_K.tolist(), strict=True)
