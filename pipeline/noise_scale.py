"""The gradient noise scale: the batch size, in tokens, up to which more data in a step is worth as much as more steps.

McCandlish et al. 2018, "An empirical model of large-batch training", section 2.2 and appendix A.1.
"""

import torch
from torch import Tensor


def signal_and_noise(
    small_squared: Tensor, small: Tensor | float, big_squared: Tensor, big: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Estimates of |G|², the squared norm of the true gradient, and of tr Σ, the variance of one token's gradient.

    Unbiased each, by the squared norms of mean gradients over two batch sizes (appendix A.1); their ratio is not.

    Args:
        small_squared: of the mean gradient of `small` tokens.
        big_squared: of the mean gradient of `big` tokens, more than `small`.
    """
    signal = (big * big_squared - small * small_squared) / (big - small)
    noise = (small_squared - big_squared) / (1 / small - 1 / big)
    return signal, noise


class NoiseScale:
    """tr Σ / |G|², of which numerator and denominator are averaged apart over the steps, as the appendix has it.

    Args:
        memory: Steps over which the averages run.
    """

    def __init__(self, memory: int = 100):
        self.share = 1 / memory
        self.averages: Tensor | None = None

    def update(self, small_squared: Tensor, small: Tensor | float, big_squared: Tensor, big: Tensor | float) -> None:
        """Take one step's measurement, arguments as of `signal_and_noise`; one that is not finite is passed over."""
        measured = torch.stack(signal_and_noise(small_squared, small, big_squared, big)).double()
        # Both begin at 0, which cancels in their ratio.
        before = torch.zeros_like(measured) if self.averages is None else self.averages
        self.averages = torch.where(measured.isfinite().all(), before.lerp(measured, self.share), before)

    @staticmethod
    def ratio(averages: Tensor) -> float | None:
        """The noise scale in tokens of averages [|G|², tr Σ]; None where noise hides the gradient, so that neither is positive."""
        signal, noise = averages.tolist()
        return noise / signal if signal > 0 and noise > 0 else None
