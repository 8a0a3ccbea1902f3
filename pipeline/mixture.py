"""Weighted mixtures as arithmetic: which source the k-th sample of a run comes from, and which of that source's own samples it is.

The sources take turns in a fixed pattern as long as the common denominator of their weights, in which each has its exact share
and nowhere runs more than a sample ahead or behind. So the mixture is right in every stretch of a run, not on average, and
position k is a look-up at k modulo the pattern's length.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

LONGEST = 1 << 16
"""Longest pattern: weights without a common denominator up to this are rounded to it."""


class Mixture:
    """A pattern of sources that repeats for ever.

    Of the first n samples of a run, source j gives floor(n w) or ceil(n w), where w is its share; so in every window of n samples
    its count differs from n w by less than 2. The pattern is made by earliest deadline first: the i-th sample (from 0) of a
    source of share w may come from place floor(i / w) on and has to come before place ceil((i + 1) / w), which is the bound above.
    Such a pattern exists, since giving every place to all sources by their shares meets these limits in fractions of samples, and a
    bipartite graph with a perfect fractional matching has a perfect one; and for jobs of unit length that begin at whole places,
    earliest deadline first finds one where there is one (Horn 1974).

    Args:
        weights: whole numbers of samples of each source in one pattern, of which their sum is the length.
    """

    def __init__(self, weights: Sequence[int]):
        self.weights = np.array(weights, dtype=np.int64)
        self.period = int(self.weights.sum())
        self.sources = _earliest_deadline_first(weights)
        # All places of source 0 in the pattern, then all of source 1, ...; and which of its source's samples each place holds.
        self.places = np.argsort(self.sources, kind="stable")
        self.firsts = np.cumsum(self.weights) - self.weights
        self.ranks = np.empty(self.period, dtype=np.int64)
        self.ranks[self.places] = np.arange(self.period) - np.repeat(self.firsts, self.weights)

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of the sample at each position k >= 0, and its number among the samples of that source."""
        periods, places = np.divmod(np.asarray(positions, dtype=np.int64), self.period)
        sources = self.sources[places]
        return sources, periods * self.weights[sources] + self.ranks[places]

    def positions(self, source: int, numbers: np.ndarray) -> np.ndarray:
        """Where the samples of these numbers of one source stand: the inverse of `split`."""
        periods, ranks = np.divmod(np.asarray(numbers, dtype=np.int64), self.weights[source])
        return periods * self.period + self.places[self.firsts[source] + ranks]

    def counts(self, below: int) -> np.ndarray:
        """How many samples each source has among the first `below` of the run."""
        periods, place = divmod(below, self.period)
        return periods * self.weights + np.bincount(self.sources[:place], minlength=len(self.weights))


def _earliest_deadline_first(weights: Sequence[int]) -> np.ndarray:
    period = sum(weights)
    pattern = np.empty(period, dtype=np.int64)
    later = [(0, source, 0) for source in range(len(weights))]
    ready: list[tuple[int, int, int]] = []
    for place in range(period):
        while later and later[0][0] <= place:
            _, source, number = heapq.heappop(later)
            heapq.heappush(ready, (-(-(number + 1) * period // weights[source]), source, number))
        _, source, number = heapq.heappop(ready)
        pattern[place] = source
        if number + 1 < weights[source]:
            heapq.heappush(later, ((number + 1) * period // weights[source], source, number + 1))
    return pattern


def whole_weights(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole numbers in the same proportion, each as its decimal digits say: 0.6 and 0.4 are 3 and 2.

    Where their sum would be more than LONGEST they are rounded to that sum (largest remainders first).

    Raises:
        ValueError: a weight that is not above 0, or too small to be met once in LONGEST samples.
    """
    exact = {name: Fraction(repr(weight)) if math.isfinite(weight) else Fraction(0) for name, weight in weights.items()}
    for name, weight in exact.items():
        if weight <= 0:
            raise ValueError(
                f"The weight of {name} is {weights[name]}: it must be above 0; leave out what is not wanted"
            )
    total = sum(exact.values())
    shares = {name: weight / total for name, weight in exact.items()}
    length = math.lcm(*(share.denominator for share in shares.values()))
    if length <= LONGEST:
        return {name: int(share * length) for name, share in shares.items()}
    rounded = {name: int(share * LONGEST) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: rounded[name] - shares[name] * LONGEST)
    for name in remainders[: LONGEST - sum(rounded.values())]:
        rounded[name] += 1
    for name, weight in rounded.items():
        if not weight:
            raise ValueError(
                f"The weight of {name} is {float(shares[name]):.2g} of the whole: "
                f"it must be at least 1 in {LONGEST}, or be left out"
            )
    return rounded
