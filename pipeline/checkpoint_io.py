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
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's writer stumbles over the failed write; only that says what is wrong, a full disk for one.
                if isinstance(error.__context__, OSError):
                    raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
                raise
