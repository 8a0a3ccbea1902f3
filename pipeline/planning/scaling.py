"""What others have found to be the best use of a budget: how large a model, trained on how much."""

from dataclasses import dataclass
from math import sqrt

from pipeline.budget import PETAFLOP_S_DAY

TOKENS_PER_PARAMETER = 20
"""The rule that Hoffmann et al. 2022 are remembered by; their table 3 has 20 to 22 tokens a parameter between 10^19 and 10^24 FLOPs."""

# L(N, D) = E + A / N^alpha + B / D^beta, fitted in their section 3.3 (equation 10).
E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28


@dataclass(frozen=True)
class Allocation:
    """A model's size and its tokens."""

    parameters: float
    tokens: float

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


def kaplan(flops: float) -> Allocation:
    """The model, without embeddings, and tokens of a budget by Kaplan et al. 2020 (appendix A, table 6: N = 1.3e9 C^0.73 and
    D = 2.0e10 C^0.27, C in petaflop/s-days)."""
    days = flops / PETAFLOP_S_DAY
    return Allocation(1.3e9 * days**0.73, 2.0e10 * days**0.27)


def chinchilla(flops: float) -> Allocation:
    """The same by 20 tokens a parameter (Hoffmann et al. 2022)."""
    parameters = sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return Allocation(parameters, TOKENS_PER_PARAMETER * parameters)


def chinchilla_fit(flops: float) -> Allocation:
    """The same by the fitted loss (Hoffmann et al. 2022, section 3.3, equation 4)."""
    exponent = BETA / (ALPHA + BETA)
    scale = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    parameters = scale * (flops / 6) ** exponent
    return Allocation(parameters, flops / 6 / parameters)


def fitted_loss(parameters: float, tokens: float) -> float:
    """Nats a token that the fit predicts on their data and vocabulary of 32,000 (Hoffmann et al. 2022, equation 10)."""
    return E + A / parameters**ALPHA + B / tokens**BETA
