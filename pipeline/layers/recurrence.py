"""torch's recurrent layers with one kind of state and one way to begin, so that a model can take any of them.

A state is a tuple of tensors (layers, B, width): the hidden state and, in an LSTM, the cell. Without one all is zero.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.layers.dropout import VariationalDropout

# B batch, T time, D width

State = tuple[Tensor, ...]


class Recurrent(nn.RNNBase):
    """What is added to torch's module, of which it takes the arguments: `forward(x_BTD, state) -> (x_BTD, state)` with
    the state as a tuple, and `initialise`. Like torch's it takes packed sequences, and drops out between layers.
    """

    states: ClassVar[int] = 1
    """Tensors in a state."""

    def __init__(self, input_width: int, width: int, layers: int = 1, *, dropout: float = 0.0, **options):
        # Behind the last layer torch drops nothing and warns.
        between_layers = dropout if layers > 1 else 0.0
        options |= {"batch_first": True, "dropout": between_layers}
        # RNNBase wants a mode before these, which torch's three modules, next in line, give it.
        super().__init__(input_width, width, layers, **options)  # pyright: ignore[reportArgumentType]

    def forward(self, x_BTD, state: State | None = None):
        x_BTD, hidden_LBD = super().forward(x_BTD, None if state is None else state[0])
        return x_BTD, (hidden_LBD,)

    def initialise(self, bound: float | None = None) -> None:
        """Draw weights and biases from U(-bound, bound); None: weights from U(-1/sqrt(D), 1/sqrt(D)), no biases."""
        limit = self.hidden_size**-0.5 if bound is None else bound
        for name, parameter in self.named_parameters():
            nn.init.uniform_(parameter, -limit, limit)
            if bound is None and "bias" in name:
                nn.init.zeros_(parameter)


class RNN(Recurrent, nn.RNN):
    """Elman's network, h = f(W_ih x + b_ih + W_hh h + b_hh).

    Args:
        nonlinearity: f, "tanh" or "relu".
        identity: begin with W_hh = 1, W_ih from N(0, 0.001) and no biases, so that h is kept, and its gradient too
            (Le et al. 2015, sections 3 and 4).
    """

    def __init__(self, *sizes: int, identity: bool = False, **options):
        super().__init__(*sizes, **options)
        self.identity = identity

    def initialise(self, bound: float | None = None) -> None:
        super().initialise(bound)
        if not self.identity:
            return
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                nn.init.eye_(parameter)
            else:
                nn.init.normal_(parameter, std=0.001)


class GRU(Recurrent, nn.GRU):
    """Cho et al. 2014 in torch's variant: the reset gate acts on W_hn h + b_hn, not on h before it is multiplied."""


class LSTM(Recurrent, nn.LSTM):
    """Hochreiter & Schmidhuber 1997 with forget gates; its state is (hidden, cell).

    Args:
        forget_bias: added to the bias of the forget gate at the beginning; an open gate lets gradients pass.
    """

    states = 2

    def __init__(self, *sizes: int, forget_bias: float = 1.0, **options):
        super().__init__(*sizes, **options)
        self.forget_bias = forget_bias

    def forward(self, x_BTD, state: tuple[Tensor, Tensor] | None = None):
        return nn.LSTM.forward(self, x_BTD, state)

    def initialise(self, bound: float | None = None) -> None:
        super().initialise(bound)
        for name, parameter in self.named_parameters():
            if "bias_ih" in name:
                # Gates lie in torch's order: input, forget, cell, output.
                parameter.data[self.hidden_size : 2 * self.hidden_size] += self.forget_bias


class VariationalStack(nn.Module):
    """Single layers with variational dropout between them, called as a `Recurrent` of several layers is."""

    def __init__(self, layers: list[Recurrent], dropout: float):
        super().__init__()
        self.states = layers[0].states
        self.layers = nn.ModuleList(layers)
        self.dropout = VariationalDropout(dropout)

    def forward(self, x_BTD: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        after = []
        for number, layer in enumerate(self.layers):
            x_BTD = self.dropout(x_BTD) if number else x_BTD
            before = None if state is None else tuple(part_LBD[number : number + 1] for part_LBD in state)
            x_BTD, end = layer(x_BTD, before)
            after.append(end)
        return x_BTD, tuple(torch.cat(parts) for parts in zip(*after, strict=True))
