"""Decoding one token at a time, drawn or the most probable, for every family of models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.generation.rows import Rows, limits_of
from pipeline.models.base import LanguageModel

# B batch, T time, V vocabulary


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The options change the logits in the order in which they stand here."""

    width: ClassVar[int] = 1
    """Rows of a batch that a continuation takes."""

    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the row holds, its prompt included (Keskar et al.
    2019, section 4.1)."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable token, and the options below then change nothing."""
    top_k: int | None = None
    """Only the k most probable tokens can be drawn."""
    top_p: float | None = None
    """Only the smallest set of tokens whose probability reaches p can be drawn (Holtzman et al. 2020, section 3.1)."""
    min_p: float | None = None
    """Only tokens at least p times as probable as the most probable one can be drawn (Nguyen et al. 2024, section 3)."""

    def __post_init__(self):
        if not (0 <= self.temperature < math.inf):
            raise ValueError(
                f"temperature {self.temperature} is not a number from 0 on: give 0 (most probable token) or more"
            )
        if not (0 < self.repetition_penalty < math.inf):
            raise ValueError(f"repetition_penalty {self.repetition_penalty} is not positive: give 1 (none) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} leaves no token to draw: give 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]: give a probability")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} is not in (0, 1]: give a share of the highest probability")


GREEDY = Sampling()


def warped(logits_BV: Tensor, sampling: Sampling, seen_BT: Tensor) -> Tensor:
    """The logits as the options change them; minus infinity for what cannot be drawn.

    Args:
        seen_BT: the tokens that each row holds.
    """
    if sampling.repetition_penalty != 1:
        seen_logits_BT = logits_BV.gather(1, seen_BT)
        penalty = sampling.repetition_penalty
        logits_BV = logits_BV.scatter(
            1, seen_BT, torch.where(seen_logits_BT > 0, seen_logits_BT / penalty, seen_logits_BT * penalty)
        )
    if sampling.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        probability_BV = sorted_BV.softmax(-1)
        # A token stays while those before it have not reached p yet; so the first always stays.
        cut_BV = probability_BV.cumsum(-1) - probability_BV >= sampling.top_p
        logits_BV = logits_BV.masked_fill(cut_BV.scatter(1, order_BV, cut_BV), -torch.inf)
    if sampling.min_p is not None:
        least_B1 = logits_BV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    return logits_BV


def choose(
    logits_BV: Tensor, sampling: Sampling, seen_BT: Tensor, generator: torch.Generator | None = None,
    shares_B: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Draw the next token of each row, which holds `seen_BT` so far. Returns tokens_B.

    Args:
        shares_B: of the probability, in [0, 1), that lies before the token of each row, instead of the generator.
    """
    logits_BV = warped(logits_BV, sampling, seen_BT)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    if shares_B is not None:
        reached_BV = logits_BV.double().softmax(-1).cumsum(-1)
        drawn_B1 = torch.searchsorted(reached_BV, shares_B[:, None] * reached_BV[:, -1:], right=True)
        return drawn_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]


class Shares:
    """Numbers in [0, 1) for the tokens of each row, from a seed of its own, on whatever device."""

    def __init__(self, seeds: Sequence[int], limits: Sequence[int], samples: int):
        self.shares_BT = torch.zeros(len(seeds), max(limits), dtype=torch.float64)
        for row, seed in enumerate(seeds):
            limit = limits[row // samples]
            own = torch.rand(limit, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            self.shares_BT[row, :limit] = own

    def at(self, places_B: Tensor) -> Tensor:
        """shares_B of each row's new token of this number; of any where its prompt goes on, or it has ended."""
        self.shares_BT = self.shares_BT.to(places_B.device)
        return self.shares_BT.gather(1, places_B.clamp(0, self.shares_BT.shape[1] - 1)[:, None])[:, 0]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int | Sequence[int],
    sampling: Sampling = GREEDY,
    *,
    samples: int = 1,
    sources: list[list[int]] | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    stop: frozenset[int] = frozenset(),
    stop_when: Callable[[list[int]], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt; return the new tokens alone, a stop token included.

    Args:
        prompts: token ids, at least one in each; those of an encoder-decoder begin with the end-of-text token.
        max_new_tokens: at most so many; one number for all prompts or one for each.
        samples: continuations of each prompt, which is read once. Row p x samples + s of the result is prompt p's sample s.
        sources: token ids that an encoder-decoder reads, one row for each prompt.
        seeds: one for each row of the result, instead of the generator: a row is then the same whatever stands beside it.
        stop: tokens that end a row.
        stop_when: called with the new tokens of a row after each; True ends the row.
        on_token: called with (row, token) as each is drawn.
    """
    limits = limits_of(max_new_tokens, prompts)
    new: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    open_rows = [row for row in range(len(new)) if limits[row // samples] > 0]
    if not open_rows:
        return new
    rows = Rows(model, prompts, limits, sources)
    shares = None if seeds is None or sampling.temperature == 0 else Shares(seeds, limits, samples)
    logits_BV = rows.next_logits()
    if samples > 1:
        prompt_of_row_B = torch.arange(len(prompts), device=logits_BV.device).repeat_interleave(samples)
        rows.select(prompt_of_row_B)
        logits_BV = logits_BV[prompt_of_row_B]
    while True:
        shares_B = None if shares is None else shares.at(rows.position - rows.prompts_B)
        drawn_B = choose(logits_BV, sampling, rows.seen_BT, generator, shares_B)
        drawn = drawn_B.tolist()
        # A row that has ended goes on being fed, but nothing reads what it says.
        for row in list(open_rows):
            if rows.position < len(prompts[row // samples]):
                continue
            new[row].append(drawn[row])
            if on_token:
                on_token(row, drawn[row])
            ended = drawn[row] in stop or len(new[row]) == limits[row // samples]
            if ended or (stop_when and stop_when(new[row])):
                open_rows.remove(row)
        if not open_rows:
            return new
        rows.extend(drawn_B)
        logits_BV = rows.next_logits()
