"""The gradient noise scale of the run, `train/noise_scale` in tokens, from gradients that training computes anyway."""

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]

from pipeline.batch import Batch
from pipeline.callbacks.buckets import listen
from pipeline.callbacks.gauges import Gauge
from pipeline.models.base import NO_TOKEN
from pipeline.noise_scale import NoiseScale
from pipeline.norms import gradient_norms
from pipeline.task import LanguageModelling


class NoiseScaleOfTraining(Gauge):
    """Compares the gradient of a part of the global batch with that of all of it, at every step.

    The part is the first micro-batch of each rank or, where a rank takes only one, that: DDP shows its gradient before it averages.
    What the ranks find is averaged at the steps that are logged. It costs one more norm of the gradient a step.
    """

    def __init__(self):
        self.scale = NoiseScale()
        self.off = True
        self.said = False

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scale.averages is None else {"averages": self.scale.averages.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self.scale.averages = torch.tensor(state_dict["averages"], dtype=torch.float64)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.task, self.off, self.part = pl_module, not pl_module.noise_scale, None
        if self.off:
            return
        if self.scale.averages is not None:
            self.scale.averages = self.scale.averages.to(pl_module.device)
        if trainer.strategy.clips_gradients or str(trainer.precision).startswith("16"):  # pyright: ignore[reportAttributeAccessIssue]
            self.off = True
            self.say(
                trainer,
                "under ZeRO and with fp16, where gradients are not at hand as they are: use DDP and bf16 or fp32",
            )
            return
        listen(trainer, self.on_bucket)

    def say(self, trainer: Trainer, why: str) -> None:
        if not self.said and trainer.is_global_zero:
            print(f"model.noise_scale is not measured {why}", flush=True)
        self.said = True

    def on_bucket(self, bucket: GradBucket) -> None:
        """Where DDP averages after the first micro-batch already: a part of this rank's own gradient of it."""
        if self.task.step_begins:
            square = bucket.buffer().float().square().sum()
            self.part = square if self.part is None else self.part + square

    def on_after_backward(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if not self.off and self.part is None and pl_module.step_begins and not pl_module.step_ended:
            # The model's own gradients: fp32 masters take them after this hook.
            self.part = gradient_norms(pl_module.model.parameters()).square().sum()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LanguageModelling, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.off:
            return
        if pl_module.step_skipped:
            self.part = None
            return
        if pl_module.step_begins:
            self.small: Tensor = (batch.targets_BT != NO_TOKEN).sum()
        if not pl_module.step_ended:
            return
        if self.part is None:
            self.say(
                trainer, "in steps of one micro-batch on one rank, which has no part to compare: lower data.micro_batch"
            )
            return
        # The loss is divided by the tokens of the global batch and multiplied by the ranks.
        to_mean = batch.valid_tokens / (self.small * trainer.world_size)
        big_squared = pl_module.gradient_norm.square()
        self.scale.update(self.part * to_mean.square(), self.small, big_squared, batch.valid_tokens)
        self.part = None

    def read(self, trainer: Trainer, pl_module: LanguageModelling) -> dict[str, float]:
        if self.off or self.scale.averages is None:
            return {}
        ratio = self.scale.ratio(trainer.strategy.reduce(self.scale.averages.clone(), reduce_op="mean"))
        return {} if ratio is None else {"train/noise_scale": ratio}
