"""Where a token stands: a vector that is added to it, learned or of sines and cosines, or a rotation of its queries and keys.

All are called with (x_BTD, positions_T), and those of decoder-only models say their `rotation`, so a model does not ask which it holds.
"""

import torch
from torch import Tensor, nn

# B batch, T time, D width, H heads, K head width, R half the number of rotated features

Rotation = tuple[Tensor, Tensor]
"""cos_TR and sin_TR of each position's angles, float32."""


class LearnedPositions(nn.Embedding):
    """A learned vector for each position, added to the token's (Radford et al. 2018, section 3.1)."""

    def forward(self, x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        return x_BTD + super().forward(positions_T)

    def rotation(self, positions_T: Tensor) -> None:
        return None


class Sinusoids(nn.Module):
    """Adds to each token the vector of its position p: feature 2i is sin(p / 10000^(2i/D)), feature 2i + 1 the cosine
    (Vaswani et al. 2017, section 3.5). Called as `LearnedPositions` is.

    Args:
        width: D, even.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        exponents = torch.arange(0, self.width, 2, device=positions_T.device, dtype=torch.float32) / self.width
        # In fp32 whatever the model's precision: bf16 cannot tell position 256 from 257.
        angles = positions_T.float()[:, None] / 10000**exponents
        return x_BTD + torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(x_BTD.dtype)


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021, section 3.2): nothing is added; queries and keys turn by angles that grow with position.

    Args:
        features: how many features of a head turn, an even number; those after them stay.
        base: the angle of pair i at position t is t / base**(2i / features).
    """

    def __init__(self, features: int, base: float = 10000.0):
        super().__init__()
        self.features = features
        self.base = base

    def forward(self, x_BTD: Tensor, positions_T: Tensor) -> Tensor:
        return x_BTD

    def rotation(self, positions_T: Tensor) -> Rotation:
        # Computed in float32 at each call rather than kept: a buffer would lose its precision in a half-precision model.
        exponents_R = torch.arange(0, self.features, 2, device=positions_T.device, dtype=torch.float32) / self.features
        # Multiplied by the inverse, as the published models were: a division rounds to other angles.
        angles_TR = positions_T.float()[:, None] * (1.0 / self.base**exponents_R)
        return angles_TR.cos(), angles_TR.sin()


def rotate(x_BHTK: Tensor, rotation: Rotation | None) -> Tensor:
    """Turn the first 2R features of each head: feature i together with feature i + R, as LLaMA's and NeoX's weights expect."""
    if rotation is None:
        return x_BHTK
    cos_TR, sin_TR = rotation
    R = cos_TR.shape[1]
    first, second, rest = x_BHTK.split([R, R, x_BHTK.shape[3] - 2 * R], dim=3)
    turned = (first * cos_TR - second * sin_TR, second * cos_TR + first * sin_TR)
    return torch.cat((*turned, rest), dim=3).type_as(x_BHTK)
