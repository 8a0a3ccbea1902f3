"""The optimizers, and which parameters decay."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from pipeline.muon import MuonAdamW, divided


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What moves the weights; one frozen subclass an optimizer."""

    needs_whole_matrices: ClassVar[bool] = False
    """Whether a step must see each matrix as a whole, which strategies that partition the optimizer do not offer."""

    learning_rate: float
    """Peak learning rate."""

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be positive")

    @abstractmethod
    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's parameters; a group's `lr_scale`, where there is one, multiplies the scheduled rate."""


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
        groups = decay_groups(module.parameters(), self.weight_decay)
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True
        )


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Orthogonalised momentum for the matrices inside the model (Jordan et al. 2024), with updates as large as AdamW's (Liu et al.
    2025, section 2.2), so that its learning rate and weight decay serve; AdamW for embeddings, head, biases and gains."""

    # A kind of AdamW, so that a YAML that names this class in place of the default keeps settings that mean the same.
    needs_whole_matrices = True

    momentum: float = 0.95
    """Of the matrices; Nesterov's."""
    newton_schulz_steps: int = 5
    """Steps of the iteration that makes an update orthogonal."""
    adamw_scale: float = 1.0
    """Learning rate of what AdamW steps, as a fraction of the scheduled one."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: it must lie in [0, 1)")
        if self.newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps is {self.newton_schulz_steps}: it must be at least 1, as 5 is")
        if self.adamw_scale <= 0:
            raise ValueError(f"adamw_scale is {self.adamw_scale}: it must be positive")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        hidden, rest = divided(module)
        muon = {"algorithm": "muon", "momentum": self.momentum, "steps": self.newton_schulz_steps}
        adamw = {
            "algorithm": "adamw", "betas": (self.beta1, self.beta2), "eps": self.eps, "lr_scale": self.adamw_scale,
            "lr": self.learning_rate * self.adamw_scale,
        }  # fmt: skip
        groups = [muon | {"params": hidden, "weight_decay": self.weight_decay}]
        groups += [adamw | group for group in decay_groups(rest, self.weight_decay)]
        return MuonAdamW([group for group in groups if group["params"]], self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, plain by default, as the recurrent recipes have it (Zaremba et al. 2014, section 4.1)."""

    # No weight decay: a YAML that names this class would inherit AdamW's, which is the default that it replaces.
    momentum: float = 0.0

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.learning_rate, momentum=self.momentum, fused=True)


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices, which decay, and vectors (biases, gains), which do not."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if dimensions(p) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if dimensions(p) < 2], "weight_decay": 0.0},
    ]


def dimensions(parameter: nn.Parameter) -> int:
    """Of a parameter as the model has it; ZeRO stage 3 leaves a vector of its part in its place, and the shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
