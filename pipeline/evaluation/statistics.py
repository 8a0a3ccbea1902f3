"""What a score says beyond its value: how far chance could have moved it, and whether two runs differ by more than that."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from data_prep.files import InputError

DRAWS = 10_000
"""Resamples behind an interval of a mean."""
SLOW_DRAWS = 200
"""Resamples where each has to be scored anew as a whole (BLEU, chrF, distinct n-grams)."""
# Values drawn at a time: bounds the memory of a bootstrap over many questions.
DRAWN_VALUES = 4_000_000

Aggregate = Callable[[Sequence[Any]], float]


def mean_stderr(values: Sequence[float]) -> float | None:
    """The standard error of a mean, as the harness has it (n - 1 in the variance); None for fewer than two values."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def bootstrap_stderr(values: Sequence[Any], aggregate: Aggregate, draws: int = SLOW_DRAWS, seed: int = 0) -> float:
    """The standard deviation of a score over resamples of its questions (Efron 1979)."""
    generator = np.random.default_rng(seed)
    scores = [aggregate([values[i] for i in generator.integers(0, len(values), len(values))]) for _ in range(draws)]
    return float(np.std(scores, ddof=1))


def p_of_chance(values: Sequence[float], chances: Sequence[float]) -> float | None:
    """The two-sided probability of a mean as far from chance as this one, had the model guessed.

    Marks of 0 and 1 with one and the same chance get the exact binomial test, marks with chances of their own (questions with
    different numbers of choices) the normal approximation of their sum, and other marks (F1) a t test of their mean.

    Args:
        values: the mark of each question.
        chances: what guessing is expected to get at each.

    Returns:
        None where the marks say nothing: fewer than two, or all alike where they are no 0 and 1.
    """
    if len(values) < 2:
        return None
    binary = all(value in (0, 1) for value in values)
    expected = sum(chances)
    if binary and len(set(chances)) == 1:
        return float(stats.binomtest(round(sum(values)), len(values), chances[0]).pvalue)
    if binary:
        variance = sum(chance * (1 - chance) for chance in chances)
        return float(2 * stats.norm.sf(abs(sum(values) - expected) / math.sqrt(variance))) if variance else None
    error = mean_stderr(values)
    if not error:
        return None
    distance = (sum(values) - expected) / len(values)
    return float(2 * stats.t.sf(abs(distance / error), len(values) - 1))


@dataclass(frozen=True)
class Difference:
    """One score less another on the same questions, with the interval that holds 95 % of the resampled differences.

    Attributes:
        p: two-sided, of a difference of the other sign or none.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    ours: Sequence[Any], theirs: Sequence[Any], aggregate: Aggregate | None = None, seed: int = 0
) -> Difference:
    """Resample the questions, the same ones for both, and see how the difference of scores varies (Koehn 2004).

    Args:
        ours, theirs: what each got on the same questions, in the same order.
        aggregate: makes a score of them; None for their mean.

    Raises:
        InputError: they are not of as many questions.
    """
    if len(ours) != len(theirs) or not ours:
        raise InputError(
            f"{len(ours)} questions cannot be paired with {len(theirs)}: evaluate both runs on the same ones (same --limit)"
        )
    generator = np.random.default_rng(seed)
    n = len(ours)
    if aggregate is None:
        gaps = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
        at_once = max(1, DRAWN_VALUES // n)
        parts = [
            gaps[generator.integers(0, n, (min(at_once, DRAWS - done), n))].mean(axis=1)
            for done in range(0, DRAWS, at_once)
        ]
        differences, observed = np.concatenate(parts), float(gaps.mean())
    else:
        rows = [generator.integers(0, n, n) for _ in range(SLOW_DRAWS)]
        differences = np.array([aggregate([ours[i] for i in r]) - aggregate([theirs[i] for i in r]) for r in rows])
        observed = aggregate(ours) - aggregate(theirs)
    low, high = np.quantile(differences, [0.025, 0.975])
    # One more on both sides of the fraction: no finite number of resamples shows a probability of 0.
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    p = min(1.0, 2 * (int(tail) + 1) / (len(differences) + 1))
    return Difference(observed, float(low), float(high), float(p))
