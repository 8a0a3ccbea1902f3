"""Dropout for recurrent networks: torch's draws anew at every time step, this one does not."""

import torch
from torch import Tensor, nn

# B batch, T time, D width


class VariationalDropout(nn.Module):
    """Dropout with one mask for all time steps of a row, drawn at each call (Gal & Ghahramani 2016, section 4; the
    "locked" dropout of Merity et al. 2018). x_BTD -> x_BTD; on one-hot vectors it drops words wherever they stand.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x_BTD
        kept_B1D = torch.empty_like(x_BTD[:, :1]).bernoulli_(1 - self.probability)
        return x_BTD * kept_B1D / (1 - self.probability)
