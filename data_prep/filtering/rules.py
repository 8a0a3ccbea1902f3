"""What a set of rules decides about a batch: for each text the first rule that it breaks."""

import numpy as np


class Verdict:
    """For each text the reason why it is dropped; the first one that is given stays."""

    def __init__(self, count: int):
        self.reasons: list[str] = []
        self._numbers = np.full(count, -1, np.int32)

    @property
    def kept(self) -> np.ndarray:
        """Which texts break no rule so far."""
        return self._numbers < 0

    def drop(self, reason: str, broken: np.ndarray) -> None:
        """Drop the texts, of those that are still kept, for which a rule is broken."""
        self._numbers[self.kept & broken] = len(self.reasons)
        self.reasons.append(reason)

    def where(self, chosen: np.ndarray) -> "Verdict":
        """The verdict about some of the texts."""
        part = Verdict(0)
        part.reasons, part._numbers = self.reasons, self._numbers[chosen]
        return part

    def names(self) -> list[str | None]:
        """The reason of each text, None for one that is kept."""
        return [self.reasons[number] if number >= 0 else None for number in self._numbers.tolist()]


def ratio(counts: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Quotients as float64; of nothing, 0."""
    return counts / np.maximum(of, 1)
