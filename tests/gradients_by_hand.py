"""The gradients of a training run on one rank, each computed once more from a copy of the model."""

from copy import deepcopy
from typing import Any

import torch
from lightning import Callback
from torch.nn import functional as F

from pipeline.noise_scale import signal_and_noise


class ByHand(Callback):
    """Computes each step's gradients once more from a copy of the model: of each micro-batch alone, and of all of them."""

    def __init__(self):
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.step_ended:
            self.steps.append({"model": deepcopy(pl_module.model), "batches": []})
        self.steps[-1]["batches"].append(batch)

    def gradients(self, step: int, batches: slice) -> dict[str, torch.Tensor]:
        """The gradient of the mean loss over some of a step's micro-batches."""
        model, chosen = self.steps[step]["model"], self.steps[step]["batches"][batches]
        tokens, targets = (torch.cat([getattr(b, side) for b in chosen]) for side in ("tokens_BT", "targets_BT"))
        model.zero_grad()
        F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def square(self, step: int, batches: slice) -> torch.Tensor:
        return sum((g.double().square().sum() for g in self.gradients(step, batches).values()), torch.zeros(()))

    def noise_scales(self, parts: int) -> list[float | None]:
        """After each step, from the first `parts` micro-batches of every step, the averages as of a plain loop."""
        averages, found = torch.zeros(2, dtype=torch.float64), []
        for step, about in enumerate(self.steps):
            sizes = [batch.targets_BT.numel() for batch in about["batches"]]
            small = sum(self.square(step, slice(k, k + 1)) for k in range(parts)) / parts
            both = signal_and_noise(torch.as_tensor(small), sizes[0], self.square(step, slice(None)), sum(sizes))
            averages = 0.99 * averages + 0.01 * torch.stack(both)
            found.append(float(averages[1] / averages[0]) if averages.min() > 0 else None)
        return found
