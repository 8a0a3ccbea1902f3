"""What is measured beside the loss, at the steps that are logged: norms by group of layers, memory by rank."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from data_prep.process_memory import peak_resident_bytes
from pipeline.norms import squares_by_group, tensor_norms
from pipeline.state_files import WEIGHTS
from pipeline.task import LanguageModelling

# P parameters, G groups of layers

RANKS_SHOWN = 8
"""Up to so many ranks each has a column of its own."""


class Gauge(Callback, ABC):
    """Something that adds columns to the row of a logged step."""

    @abstractmethod
    def read(self, trainer: Trainer, pl_module: LanguageModelling) -> dict[str, float]:
        """The columns, right after a step; every rank calls it, so that they may be gathered."""


class LayerNorms(Gauge):
    """`norm/grad/<group>` of the gradient before clipping and `norm/weight/<group>` of the fp32 weights, for each group of layers.

    Gradients' norms are by-products of clipping. Where the strategy clips, as ZeRO does, gradients lie in pieces that are gone
    after the step, and their columns are left out.
    """

    def read(self, trainer: Trainer, pl_module: LanguageModelling) -> dict[str, float]:
        pieces = [piece for piece in trainer.strategy.local_state() if piece.kind == WEIGHTS]  # pyright: ignore[reportAttributeAccessIssue]
        norms_P = tensor_norms([piece.values for piece in pieces])
        row = {}
        if pl_module.gradient_norms is not None:
            row |= by_group("grad", *squares_by_group(*pl_module.gradient_norms))
        groups, squares_G = self.of_all_ranks(trainer, *squares_by_group([piece.name for piece in pieces], norms_P))
        return row | by_group("weight", groups, squares_G)

    @staticmethod
    def of_all_ranks(trainer: Trainer, groups: list[str], squares_G: Tensor) -> tuple[list[str], Tensor]:
        """The sums over the ranks, where each has its own pieces of the weights; one may have none of a group."""
        if not trainer.strategy.partitioned:  # pyright: ignore[reportAttributeAccessIssue]
            return groups, squares_G
        parts: list[Any] = trainer.strategy.gather(dict(zip(groups, squares_G.tolist(), strict=True)))  # pyright: ignore[reportAttributeAccessIssue]
        everywhere = list(dict.fromkeys(group for part in parts for group in part))
        return everywhere, torch.tensor([sum(part.get(group, 0.0) for part in parts) for group in everywhere])


def by_group(kind: str, groups: list[str], squares_G: Tensor) -> dict[str, float]:
    return {f"norm/{kind}/{group}": norm for group, norm in zip(groups, squares_G.sqrt().tolist(), strict=True)}


class MemoryByRank(Gauge):
    """`memory/rank<r>_gb`: the most that each rank has held so far, in 10⁹ bytes; of many ranks `memory/least_gb` and `memory/most_gb`.

    On CUDA what torch's allocator gave out, on a CPU the resident memory of the process.
    """

    def read(self, trainer: Trainer, pl_module: LanguageModelling) -> dict[str, float]:
        own = torch.tensor(peak_bytes(pl_module.device) / 1e9, device=pl_module.device)
        by_rank = trainer.strategy.all_gather(own).reshape(-1).tolist()
        if len(by_rank) <= RANKS_SHOWN:
            return {f"memory/rank{rank}_gb": value for rank, value in enumerate(by_rank)}
        return {"memory/least_gb": min(by_rank), "memory/most_gb": max(by_rank)}


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
