"""A look at each bucket of gradients as DDP sends it off: this rank's own share, and the moment."""

from collections.abc import Callable

import torch
from lightning import Trainer
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

Listener = Callable[[GradBucket], None]


class Listeners(list[Listener]):
    """Averages a bucket over the ranks, as DDP does by itself, after all who listen have seen it."""

    def reduce(self, group: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        for listener in self:
            listener(bucket)
        return allreduce_hook(group, bucket)  # pyright: ignore[reportArgumentType]  None: all ranks


def listen(trainer: Trainer, listener: Listener) -> None:
    """Have `listener` called with each bucket before it is reduced, from now on, once; under another strategy than DDP nothing happens."""
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        return
    listeners = vars(model).setdefault("bucket_listeners", Listeners())
    if not listeners:
        model.register_comm_hook(None, listeners.reduce)
    if listener not in listeners:
        listeners.append(listener)
