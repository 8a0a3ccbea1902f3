"""The moving average of the weights, kept beside them in whatever pieces the strategy has: often better than the weights themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.state_files import AVERAGE, WEIGHTS, Piece


def share_of_step(before: int, after: int, half_life: int) -> float:
    """How much of the average a step's weights become.

    The average forgets half in `half_life` tokens, whatever the batch size; in the beginning, when there is less to remember, it is
    the plain mean over the tokens seen, so that the random first weights have no part in it. A pure function: nothing is saved.

    Args:
        before, after: tokens trained on before and after the step.
    """
    step = after - before
    return max(1 - 0.5 ** (step / half_life), step / after)


class AveragedWeights:
    """An average of the weights that `local_state` yields on this rank, in the weights' full precision.

    Args:
        local_state: the strategy's: pieces of which those of kind WEIGHTS are averaged, always the same ones in the same order.
    """

    def __init__(self, local_state: Callable[[], Iterator[Piece]]):
        self.local_state = local_state
        self.averages: list[Tensor] = []

    def weights(self) -> list[Piece]:
        return [piece for piece in self.local_state() if piece.kind == WEIGHTS]

    def pieces(self) -> Iterator[Piece]:
        """The average, piece by piece, to be saved or to be loaded into."""
        weights = self.weights()
        if not self.averages:
            self.averages = [piece.values.detach().clone() for piece in weights]
        for piece, average in zip(weights, self.averages, strict=True):
            yield replace(piece, kind=AVERAGE, values=average, loaded=None)

    @contextmanager
    def in_place(self, state_loaded: Callable[[], None]) -> Iterator[None]:
        """A block in which the model has the average for its weights, and after which it has its own again, bit for bit.

        Args:
            state_loaded: the strategy's; called on every rank when the pieces have changed.
        """
        own = [piece.values.detach().clone() for piece in self.weights()]
        self.write(self.averages or own, state_loaded)
        try:
            yield
        finally:
            self.write(own, state_loaded)

    @torch.no_grad()
    def write(self, values: list[Tensor], state_loaded: Callable[[], None]) -> None:
        for piece, value in zip(self.weights(), values, strict=True):
            piece.write(value)
        state_loaded()

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Move by `share` of the way to the weights; the first call takes them as they are."""
        weights = [piece.values for piece in self.weights()]
        if not self.averages:
            self.averages = [values.detach().clone() for values in weights]
        torch._foreach_lerp_(self.averages, weights, share)  # type: ignore[attr-defined]
