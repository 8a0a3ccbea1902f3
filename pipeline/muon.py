"""Muon for the matrices of a model and AdamW for all else, as one torch optimizer: Lightning and a checkpoint want one."""

from collections.abc import Callable
from itertools import chain
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x³ + c x⁵ whose iterates take singular values from all of (0, 1] to about 1 (Jordan et al. 2024)."""


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: U V' of the singular value decomposition U S V', by Newton-Schulz iteration.

    Singular values come out between 0.7 and 1.2, which serves as well as 1 and takes fewer steps (Jordan et al. 2024).

    Args:
        matrix: (rows, columns); worked on in bf16.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    # The iteration multiplies by the Gram matrix, which is the smaller one of the wide form.
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Steps each group of parameters by its `algorithm`, `muon` or `adamw`.

    A matrix moves by its orthogonalised Nesterov momentum, scaled so that an element moves by 0.2 in root mean square (Liu et al.
    2025, section 2.2): as far as under AdamW, so that one learning rate and one weight decay serve both.

    Args:
        groups: Parameter groups, each with `algorithm`, `weight_decay` and, of muon, the `momentum` and the `steps` of the
            iteration, of adamw `betas` and `eps`.
        lr: Learning rate of the groups without their own.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float):
        super().__init__(groups, {"lr": lr})
        for group in self.param_groups:
            if group["algorithm"] == "muon" and any(matrix.dim() != 2 for matrix in group["params"]):
                raise ValueError("Muon steps matrices only: give what has more or fewer dimensions than two to adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            algorithm = {"muon": self.step_muon, "adamw": self.step_adamw}[group["algorithm"]]
            algorithm([parameter for parameter in group["params"] if parameter.grad is not None], group)
        return loss

    def step_muon(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            assert matrix.grad is not None
            momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
            direction = orthogonalised(matrix.grad.lerp(momentum, group["momentum"]), group["steps"])
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(direction, alpha=-group["lr"] * 0.2 * sqrt(max(matrix.shape)))

    def step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        steps, means, squares = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        adamw(
            parameters, [p.grad for p in parameters if p.grad is not None], means, squares, [], steps, fused=True, amsgrad=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=False,
        )  # fmt: skip


def divided(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters of a model: hidden matrices, which Muon steps, and the rest.

    Tables and the output head are matrices by form only: a row of them is a token's own, and AdamW serves them better (Jordan et
    al. 2024). The head is the submodule of that name.
    """
    named = ((name.rpartition(".")[2], child) for name, child in module.named_modules())
    tables = [child for name, child in named if name == "head" or isinstance(child, nn.Embedding)]
    rows_of_tokens = {*chain.from_iterable(table.parameters() for table in tables)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    hidden = [p for p in parameters if p.dim() == 2 and min(p.shape) > 1 and p not in rows_of_tokens]
    chosen = {*hidden}
    return hidden, [p for p in parameters if p not in chosen]
