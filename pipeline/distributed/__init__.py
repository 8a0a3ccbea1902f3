"""How a run is spread over processes: one device, DDP, DeepSpeed's ZeRO; and how its state is saved from any of them for any other."""

from pipeline.distributed.replicated import DDP, SingleDevice
from pipeline.distributed.zero import ZeRO

__all__ = ["DDP", "SingleDevice", "ZeRO"]
