"""Positions as sines and cosines of falling frequency: nothing to learn, and no last position."""

import torch
from torch import Tensor, nn

# B batch, T time, D width


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
        exponents = torch.arange(0, self.width, 2, device=positions_T.device) / self.width
        # In fp32 whatever the model's precision: bf16 cannot tell position 256 from 257.
        angles = positions_T.float()[:, None] / 10000**exponents
        return x_BTD + torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(x_BTD.dtype)
