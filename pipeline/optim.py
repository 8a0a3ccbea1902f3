"""The optimizers, and which parameters decay."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What moves the weights; one frozen subclass an optimizer."""

    learning_rate: float
    """Peak learning rate."""

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive")

    @abstractmethod
    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's parameters."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); the defaults are GPT-3's (Brown et al. 2020, appendix B)."""

    learning_rate: float = 6e-4
    """Peak learning rate."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Applied to matrices; biases and gains do not decay."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        groups = decay_groups(module, self.weight_decay)
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, plain by default, as the recurrent recipes have it (Zaremba et al. 2014, section 4.1)."""

    # No weight decay: a YAML that names this class would inherit AdamW's, which is the default that it replaces.
    momentum: float = 0.0

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.learning_rate, momentum=self.momentum, fused=True)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices, which decay, and vectors (biases, gains), which do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
