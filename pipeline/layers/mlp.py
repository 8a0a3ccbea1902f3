"""The position-wise network of a transformer block."""

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Two linear layers with the tanh approximation of GELU between them, as in GPT-2. (..., width) -> (..., width)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.expand(x), approximate="tanh"))
