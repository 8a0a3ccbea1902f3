"""A corpus whose tokens say where they stand, for tests of what is read from where."""

import numpy as np


class Counting:
    """Tokens 0, 1, 2, ..."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        assert starts.max() + length <= self.length
        return starts[:, None] + np.arange(length)
