"""Language modelling as a LightningModule: batch -> loss -> step. Every family of models trains through this one definition."""

import math
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from data_prep.files import InputError
from pipeline import metrics
from pipeline.batch import IGNORED, Batch
from pipeline.checkpoint import RECORD_KEY, describe_model, refuse_other_run
from pipeline.data import TokenDataModule
from pipeline.loss import token_nll
from pipeline.models.base import LanguageModel, ModelConfig
from pipeline.optim import AdamW
from pipeline.schedule import CosineSchedule

# B batch, T time


class LanguageModelling(LightningModule):
    """Trains a language model to predict the next token.

    Args:
        architecture: The model to build.
        optimizer: What moves the weights.
        schedule: How its learning rate goes with the tokens seen.
    """

    def __init__(
        self,
        architecture: ModelConfig,
        optimizer: AdamW = AdamW(),  # noqa: B008  frozen
        schedule: CosineSchedule = CosineSchedule(),  # noqa: B008  frozen
    ):
        super().__init__()
        self.architecture, self.optimizer, self.schedule = architecture, optimizer, schedule
        self.loaded_step = 0
        self.evaluation: dict[str, Any] = {}
        """Of the last pass over an evaluation split: loss, perplexity, bits per byte, loss by position."""

    @property
    def data(self) -> TokenDataModule:
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    def configure_model(self) -> None:
        """Build the model where the strategy wants it; called once before each use of the Trainer."""
        if not hasattr(self, "model"):
            self.model: LanguageModel = self.architecture.build()

    def setup(self, stage: str) -> None:
        shards, model = self.data.manifest.vocab_size, self.architecture.vocab_size
        if shards != model:
            raise InputError(
                f"Shards were written with a vocabulary of {shards}, the model has {model}: "
                "set model.architecture.vocab_size or run data_prep tokenize again"
            )
        limit = getattr(self.architecture, "context", None)
        if limit is not None and self.data.context > limit:
            raise InputError(
                f"data.context {self.data.context} is longer than the model's context of {limit}: "
                "lower data.context or raise model.architecture.context"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer.build(self)

    # -- training

    def on_train_start(self) -> None:
        self.step_nll = torch.zeros((), device=self.device, dtype=torch.float64)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of the place in the order, so a resumed run draws what an uninterrupted one would.
        torch.manual_seed(hash((self.data.seed, int(batch.samples_B[0]))))
        rate = self.learning_rate(self.trainer.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def learning_rate(self, step: int) -> float:
        """The rate of the optimizer step that follows `step` others; warm-up starts above 0."""
        tokens = self.data.tokens_at(step + 1)
        return self.optimizer.learning_rate * self.schedule.multiplier(tokens, self.data.tokens_at(self.data.steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits_BTV, _ = self.model(batch.tokens_BT)
        nll = token_nll(logits_BTV, batch.targets_BT).sum()
        self.step_nll += nll.detach()
        # Sum, not mean: micro-batches may hold different numbers of valid tokens. Lightning divides by the accumulation
        # and DDP by the ranks, so both are multiplied back.
        return nll / batch.valid_tokens * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        limit = gradient_clip_val if gradient_clip_val else math.inf
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)
        self.gradient_limit = limit

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self.ends_step(batch_idx):
            return
        self.step_nll.zero_()
        if self.trainer.global_step >= self.trainer.max_steps:
            # Tells the loop to validate now, whether or not the interval ends here.
            self.trainer.should_stop = True

    def ends_step(self, batch_idx: int) -> bool:
        """Whether this micro-batch was the last of its global batch."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    @property
    def trained_steps(self) -> int:
        """Optimizer steps that the weights in hand have had."""
        return self.trainer.global_step if self.trainer.state.fn == "fit" else self.loaded_step

    def measure_step(self, valid_tokens: int) -> dict[str, float]:
        """Loss (nats per token of the global batch), gradient norms and learning rate of the step that has just ended."""
        loss = float(self.trainer.strategy.reduce(self.step_nll.clone(), reduce_op="sum")) / valid_tokens
        norm = float(self.gradient_norm)
        return {
            "train/loss": loss,
            "train/perplexity": metrics.perplexity(loss),
            "train/grad_norm": norm,
            "train/grad_norm_clipped": min(norm, self.gradient_limit),
            "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
        }

    # -- evaluation

    def on_validation_epoch_start(self) -> None:
        self.begin_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation("validation")
        for name in ("loss", "perplexity", "bits_per_byte"):
            # For callbacks that watch a metric; the loggers get theirs, exactly, from MetricsLog.
            self.log(f"val/{name}", self.evaluation[name], logger=False, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        self.begin_evaluation()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def on_test_epoch_end(self) -> None:
        self.finish_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Each window's number and the loss of each of its tokens in nats: samples_B, nll_BT (nan past the end)."""
        logits_BTV, _ = self.model(batch.tokens_BT)
        nll_BT = token_nll(logits_BTV, batch.targets_BT)
        return batch.samples_B, nll_BT.masked_fill(batch.targets_BT == IGNORED, math.nan)

    def begin_evaluation(self) -> None:
        zeros_T = torch.zeros(self.data.context, device=self.device, dtype=torch.float64)
        self.sums = {"nll": zeros_T, "tokens": zeros_T.clone(), "bytes": zeros_T.clone()}
        self.bytes_V = torch.from_numpy(self.data.token_bytes()).to(self.device)

    def evaluate_batch(self, batch: Batch) -> None:
        logits_BTV, _ = self.model(batch.tokens_BT)
        valid_BT = batch.targets_BT != IGNORED
        self.sums["nll"] += token_nll(logits_BTV, batch.targets_BT).sum(0)
        self.sums["tokens"] += valid_BT.sum(0)
        self.sums["bytes"] += (self.bytes_V[batch.targets_BT.clamp(min=0)] * valid_BT).sum(0)

    def finish_evaluation(self, split: str) -> None:
        totals = {name: self.trainer.strategy.reduce(value, reduce_op="sum").cpu() for name, value in self.sums.items()}
        nats, tokens, text_bytes = (float(totals[name].sum()) for name in ("nll", "tokens", "bytes"))
        by_position = totals["nll"] / totals["tokens"].clamp(min=1)
        self.evaluation = {
            "split": split,
            "loss": nats / tokens,
            "perplexity": metrics.perplexity(nats / tokens),
            "bits_per_byte": metrics.bits_per_byte(nats, int(text_bytes)),
            "tokens": int(tokens),
            "bytes": int(text_bytes),
            "loss_by_position": by_position[totals["tokens"] > 0].tolist(),
        }

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD_KEY] = {
            "format": 1,
            "model": describe_model(self.architecture),
            "data": self.data.identity(),
            "step": self.trainer.global_step,
            "tokens_seen": self.data.tokens_at(self.trainer.global_step),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other_run(
            checkpoint.get(RECORD_KEY), model=describe_model(self.architecture), data=self.data.identity(),
            training=self.trainer.state.fn == "fit",
        )  # fmt: skip
        self.loaded_step = checkpoint[RECORD_KEY]["step"]
