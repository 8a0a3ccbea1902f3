"""Strategies under which every process has the whole model: one device, and DDP."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from pipeline.distributed.sharded_state import ShardedState
from pipeline.master_weights import MasterWeights
from pipeline.state_files import WEIGHTS, Piece


class Replicated(ShardedState):
    """The whole of weights and optimizer state, tensor by tensor."""

    def local_state(self) -> Iterator[Piece]:
        for name, parameter in named_weights(self.task):
            stepped, state = self.optimized(parameter)
            yield whole(WEIGHTS, name, stepped.detach())
            for kind, values in state.items():
                if torch.is_tensor(values) and values.shape == parameter.shape:
                    yield whole(kind, name, values)

    def optimized(self, parameter: nn.Parameter) -> tuple[Tensor, dict[str, Any]]:
        """What the optimizer steps for a parameter (itself, or its fp32 master), and the state that it keeps for that."""
        if not self.optimizers:
            return parameter, {}
        optimizer = self.optimizers[0]
        stepped = optimizer.master_of(parameter) if isinstance(optimizer, MasterWeights) else parameter
        return stepped, optimizer.state.get(stepped, {})

    def optimizer_scalars(self) -> dict[str, dict[str, float]]:
        scalars = {}
        for name, parameter in named_weights(self.task):
            _, state = self.optimized(parameter)
            numbers = {key: float(value) for key, value in state.items() if is_number(value, parameter)}
            if state:
                scalars[name] = numbers
        return scalars

    def create_optimizer_state(self, kinds: set[str], scalars: Mapping[str, Mapping[str, float]]) -> None:
        for name, parameter in named_weights(self.task):
            if name in scalars:
                stepped, _ = self.optimized(parameter)
                fill_state(self.optimizers[0].state[stepped], stepped, self.source_kinds(name, kinds), scalars[name])

    def source_kinds(self, name: str, kinds: set[str]) -> list[str]:
        """Which of the kinds there are for a parameter."""
        return [kind for kind in sorted(kinds) if self.source.has(kind, name)]

    def state_loaded(self) -> None:
        optimizer = self.optimizers[0] if self.optimizers else None
        if isinstance(optimizer, MasterWeights):
            optimizer.copy_to_model()


class SingleDevice(Replicated, SingleDeviceStrategy):
    """One process on one device."""

    def __init__(self, device: str = "cpu"):
        super().__init__(device)


class DDP(Replicated, DDPStrategy):
    """Every process has the whole model and its share of each batch; gradients are averaged (Li et al. 2020).

    Args:
        bucket_megabytes: Gradients are sent in buckets of this size while the backward pass goes on.
    """

    def __init__(self, bucket_megabytes: int = 25):
        super().__init__(bucket_cap_mb=bucket_megabytes, gradient_as_bucket_view=True)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients are averaged once a step; where fp32 masters take them, after every micro-batch."""
        if getattr(self.task, "masters", None):
            yield
            return
        with super().block_backward_sync():
            yield


def named_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the model inside a task, by the names that they have in the model; one that is tied comes once."""
    for name, parameter in module.named_parameters():
        yield name.removeprefix("model."), parameter


def whole(kind: str, name: str, values: Tensor) -> Piece:
    return Piece(kind, name, tuple(values.shape), 0, values.view(-1))


def is_number(value: Any, parameter: Tensor) -> bool:
    if torch.is_tensor(value):
        return value.numel() == 1 and value.shape != parameter.shape
    return isinstance(value, int | float)


def fill_state(state: dict[str, Any], stepped: Tensor, kinds: list[str], scalars: Mapping[str, float]) -> None:
    """Make an optimizer's state of one tensor: zeros of its shape, and the numbers, as torch's optimizers keep them."""
    for key, value in scalars.items():
        state[key] = torch.tensor(value, dtype=torch.float32, device=stepped.device)
    for kind in kinds:
        state[kind] = torch.zeros_like(stepped, memory_format=torch.preserve_format)
