"""One call for both ways to continue prompts, sampling and beam search, by the options that are given."""

from collections.abc import Callable, Sequence

import torch

from pipeline.generation.beam import Beam, beam_search
from pipeline.generation.sampling import Sampling, generate
from pipeline.models.base import LanguageModel


def decode(
    model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int | Sequence[int],
    how: Sampling | Beam,
    *,
    samples: int = 1,
    sources: list[list[int]] | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    stop: frozenset[int] = frozenset(),
    stop_when: Callable[[list[int]], bool] | None = None,
) -> list[list[list[int]]]:
    """For each prompt its continuations: `samples` that are drawn, or so many of the best that beam search finds.

    The arguments are those of `generate`; generator and seeds only serve sampling.
    """
    if isinstance(how, Beam):
        found = beam_search(
            model, prompts, max_new_tokens, how, best=samples, sources=sources, stop=stop, stop_when=stop_when
        )
        return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]
    new = generate(
        model, prompts, max_new_tokens, how, samples=samples, sources=sources, generator=generator, seeds=seeds,
        stop=stop, stop_when=stop_when,
    )  # fmt: skip
    return [new[row : row + samples] for row in range(0, len(new), samples)]
