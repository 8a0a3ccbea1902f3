"""How a checkpoint reaches the disk whole. Apart from `checkpoint`, so that loading a model needs no Lightning."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from data_prep.files import atomic_path


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when every byte is on the disk: a kill at any moment leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
