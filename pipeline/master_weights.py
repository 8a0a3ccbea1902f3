"""fp32 copies of a half-precision model's weights, which an optimizer steps in the weights' place.

A bf16 weight keeps 8 bits: an update of less than 1/512 of it would be rounded away, and most are smaller (Micikevicius et al.
2018, section 3.1). Gradients have fp32 copies too, to which each micro-batch's are added, so accumulation loses nothing either.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MasterWeights:
    """Steps fp32 masters by an optimizer and rounds them into the model; used as a torch optimizer is.

    After each backward pass call `take_gradients`; whoever clips or measures gradients finds them in `param_groups`. Under
    data-parallel training gradients must be averaged before they are taken, so in every micro-batch.

    Args:
        inner: an optimizer of the model's parameters that has not stepped yet; from now on it is one of the masters.
    """

    def __init__(self, inner: torch.optim.Optimizer):
        self.inner = inner
        self.masters: dict[Tensor, Tensor] = {}
        """By the model's parameter."""
        for group in inner.param_groups:
            for parameter in group["params"]:
                self.masters[parameter] = parameter.detach().float().clone()
            group["params"] = [self.masters[parameter] for parameter in group["params"]]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        return self.inner.defaults

    @property
    def state(self) -> dict[Tensor, Any]:
        return self.inner.state

    def master_of(self, parameter: Tensor) -> Tensor:
        return self.masters[parameter]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the model's gradients to those of the masters, and let go of them."""
        for parameter, master in self.masters.items():
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = self.inner.step(closure)
        self.copy_to_model()
        return result

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for parameter, master in self.masters.items():
            parameter.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.masters:
            parameter.grad = None
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "masters": list(self.masters.values())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        with torch.no_grad():
            for master, saved in zip(self.masters.values(), state_dict["masters"], strict=True):
                master.copy_(saved)
        self.copy_to_model()
