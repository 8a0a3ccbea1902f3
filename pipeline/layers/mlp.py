"""The position-wise network of a transformer block: two linear layers, or three with a gate."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class MLP(nn.Module):
    """output(activation(expand(x))), (..., width) -> (..., width) (Vaswani et al. 2017, section 3.3).

    Args:
        hidden: width in the middle.
        activation: a name in ACTIVATIONS; "gelu_tanh" is GPT's approximation of "gelu" (Hendrycks & Gimpel 2016).
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu_tanh", bias: bool = True):
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.output = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(self.expand(x)))


class GatedMLP(nn.Module):
    """SwiGLU: output(silu(gate(x)) * expand(x)), (..., width) -> (..., width) (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, hidden: int, bias: bool = True):
        super().__init__()
        self.expand = nn.Linear(width, hidden, bias=bias)
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.output = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gate(x)) * self.expand(x))
