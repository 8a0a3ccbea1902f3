"""Beam search: the continuations of highest probability that a search along a few open ones at a time finds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.generation.rows import Rows, limits_of
from pipeline.models.base import LanguageModel

# P prompts that are still searched, W beam width, B = P x W rows, C candidates, V vocabulary


@dataclass(frozen=True, kw_only=True)
class Beam:
    """The options of beam search; as GPT-3 had them for free-form answers (Brown et al. 2020, section 2.4)."""

    width: int = 4
    """Continuations of a prompt that are followed at a time, each a row of the batch; 1 is greedy decoding."""
    length_penalty: float = 0.6
    """Alpha of the GNMT length penalty: 0 ranks by probability alone, more of it favours longer texts."""

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"beam width {self.width} follows no continuation: give 1 or more")
        if not 0 <= self.length_penalty < float("inf"):
            raise ValueError(f"length_penalty {self.length_penalty} is not a number from 0 on: give 0 (none) or more")

    def score(self, log_probability: float, length: int) -> float:
        """log P(Y) / lp(Y), lp(Y) = ((5 + |Y|) / 6)^alpha (Wu et al. 2016, equation 14, without its coverage penalty)."""
        return log_probability / ((5 + length) / 6) ** self.length_penalty


GPT3_BEAM = Beam()


class Hypothesis(NamedTuple):
    """A continuation that has ended."""

    tokens: list[int]
    """The new tokens, a stop token included; all of them count as the length |Y|."""
    score: float
    """What hypotheses are ranked by."""
    log_probability: float


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int | Sequence[int],
    beam: Beam = GPT3_BEAM,
    *,
    best: int = 1,
    sources: list[list[int]] | None = None,
    stop: frozenset[int] = frozenset(),
    stop_when: Callable[[list[int]], bool] | None = None,
) -> list[list[Hypothesis]]:
    """The best continuations that are found of each prompt, best first.

    A continuation ends with a stop token, or where `stop_when` says so, or at `max_new_tokens`, if it is then among the W best.
    A prompt's search ends when W continuations have ended, or when no open one can outdo the `best` that have.

    Args:
        best: how many to return of each prompt, at most W; fewer where fewer exist.

    The other arguments are those of `generate`.
    """
    if not 1 <= best <= beam.width:
        raise ValueError(
            f"{best} hypotheses are asked of a beam of {beam.width}: ask for 1 to {beam.width} or widen it"
        )
    limits = limits_of(max_new_tokens, prompts)
    searches = [Search(beam, limit, best) for limit in limits]
    live = [prompt for prompt, limit in enumerate(limits) if limit > 0]
    if not live:
        return [[] for _ in prompts]
    W = beam.width
    rows = Rows(model, prompts, limits, sources)
    logits_BV = rows.next_logits()
    # Each prompt was read once; its beams begin as copies of it, of which one is alive.
    kept_B = torch.tensor(live, device=logits_BV.device).repeat_interleave(W)
    rows.select(kept_B)
    logits_BV = logits_BV[kept_B]
    sums = [[0.0] + [-torch.inf] * (W - 1) for _ in live]
    while True:
        P, V = len(live), logits_BV.shape[-1]
        sums_B1 = torch.tensor(sums, device=logits_BV.device).view(-1, 1)
        total_PC = (sums_B1 + logits_BV.log_softmax(-1)).view(P, W * V)
        # So many that, though every stop token of every beam stood among them, W others would too.
        top = total_PC.topk(min(W * (1 + len(stop)), W * V))
        next_live, next_rows, next_tokens, sums = [], [], [], []
        for place, prompt in enumerate(live):
            if rows.position < len(prompts[prompt]):
                # The prompt still goes on, and its beams with it, whatever token is named here.
                opened = [Opened(0.0 if w == 0 else -torch.inf, place * W + w, 0) for w in range(W)]
            else:
                candidates = [
                    Opened(total, place * W + index // V, index % V)
                    for total, index in zip(top.values[place].tolist(), top.indices[place].tolist(), strict=True)
                ]
                so_far_BT = rows.seen_BT[:, len(prompts[prompt]) :]
                opened = searches[prompt].advance(candidates, so_far_BT, stop, stop_when)
            if opened:
                next_live.append(prompt)
                next_rows += [candidate.row for candidate in opened]
                next_tokens += [candidate.token for candidate in opened]
                sums.append([candidate.log_probability for candidate in opened])
        if not next_live:
            return [search.ranked()[:best] for search in searches]
        live = next_live
        if next_rows != list(range(len(logits_BV))):
            rows.select(torch.tensor(next_rows, device=logits_BV.device))
        rows.extend(torch.tensor(next_tokens, device=logits_BV.device))
        logits_BV = rows.next_logits()


class Opened(NamedTuple):
    """A continuation of an open beam, a row of the batch, by one token."""

    log_probability: float
    row: int
    token: int


class Search:
    """What is known of one prompt's continuations."""

    def __init__(self, beam: Beam, limit: int, best: int):
        self.beam, self.limit, self.best = beam, limit, best
        self.ended: list[Hypothesis] = []

    def advance(
        self,
        candidates: list[Opened],
        so_far_BT: Tensor,
        stop: frozenset[int],
        stop_when: Callable[[list[int]], bool] | None,
    ) -> list[Opened]:
        """Sort candidates, best first, into those that end and W that stay open; none when the search is over.

        Args:
            so_far_BT: the new tokens of the open beams.
        """
        opened: list[Opened] = []
        length = so_far_BT.shape[1] + 1

        def text(candidate: Opened) -> list[int]:
            return [*so_far_BT[candidate.row].tolist(), candidate.token]

        for rank, candidate in enumerate(candidates):
            if candidate.log_probability == -torch.inf or len(opened) == self.beam.width:
                break
            ended = candidate.token in stop or length == self.limit
            if not (ended or (stop_when and stop_when(text(candidate)))):
                opened.append(candidate)
            elif rank < self.beam.width:
                score = self.beam.score(candidate.log_probability, length)
                self.ended.append(Hypothesis(text(candidate), score, candidate.log_probability))
        if not opened or len(self.ended) >= self.beam.width or self.cannot_improve(opened[0].log_probability):
            return []
        # Beams of no probability fill up where the vocabulary (or what the stop strings leave) is too small.
        return opened + [Opened(-torch.inf, candidates[0].row, 0)] * (self.beam.width - len(opened))

    def cannot_improve(self, log_probability: float) -> bool:
        """Whether no continuation of an open beam can enter the best: at most it loses no more and grows to the limit."""
        bound = self.beam.score(log_probability, self.limit)
        return len(self.ended) >= self.best and bound <= self.ranked()[self.best - 1].score

    def ranked(self) -> list[Hypothesis]:
        return sorted(self.ended, key=lambda hypothesis: hypothesis.score, reverse=True)
