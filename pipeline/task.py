"""Language modelling as a LightningModule: batch -> loss -> step. Every family of models trains through this one definition."""

import math
from collections.abc import Callable, Container
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor

from data_prep.files import InputError
from pipeline import metrics
from pipeline.averaging import AveragedWeights, share_of_step
from pipeline.batch import Batch
from pipeline.carried_state import CarriedState
from pipeline.checkpoint import RECORD_KEY, describe_model, load_pretrained, refuse_other_run
from pipeline.data import TokenDataModule
from pipeline.layers.head import Scores, Targets
from pipeline.master_weights import MasterWeights
from pipeline.models.base import NO_TOKEN, EncoderDecoder, LanguageModel, ModelConfig
from pipeline.norms import clip_gradients
from pipeline.optim import AdamW, Optimizer
from pipeline.schedule import CosineSchedule, Schedule
from pipeline.scheduled_sampling import mix_inputs

# B batch, T time


class StepWithdrawn(Exception):
    """Raised on every rank where a step was left out and is not to count: the loop lets `answer` say how training goes on.

    Args:
        answer: called when the loop is left. Where it returns, training begins anew at what is in the loops' counters then.
    """

    def __init__(self, answer: Callable[[], None]):
        super().__init__("a step was left out and is not counted")
        self.answer = answer


class LanguageModelling(LightningModule):
    """Trains a language model to predict the next token.

    Args:
        architecture: The model to build.
        optimizer: What moves the weights.
        schedule: How its learning rate goes with the tokens seen.
        label_smoothing: Share of the target that is spread over the vocabulary; the losses logged are without it.
        z_loss: Coefficient of log(Z)^2, Z the softmax's normaliser, in the loss that is lowered (1e-4 in Chowdhery et al. 2022,
            section 5); the losses logged are without it.
        scheduled_sampling: Of an encoder-decoder: share of the decoder's inputs that are its own at the end of the run; it grows
            linearly from 0 (Bengio et al. 2015).
        pretrained: Run directory whose weights to begin with; a classifier takes them for its body.
        compile: Compile the model with torch.compile, for speed; the first step of each shape waits for the compiler.
        checkpoint_blocks: Activation checkpointing: of every so many blocks the last is run again in the backward pass rather than
            kept, which takes less memory and more time; 1: all blocks, 0: none.
        ema_half_life_tokens: Keep a moving average of the weights too, which forgets half in so many tokens; none when not given.
        noise_scale: Measure the gradient noise scale (McCandlish et al. 2018) and log it as train/noise_scale, in tokens.
    """

    def __init__(
        self,
        architecture: ModelConfig,
        optimizer: Optimizer = AdamW(),  # noqa: B008  frozen
        schedule: Schedule = CosineSchedule(),  # noqa: B008  frozen
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        scheduled_sampling: float = 0.0,
        pretrained: str | None = None,
        compile: bool = False,
        checkpoint_blocks: int = 0,
        ema_half_life_tokens: int | None = None,
        noise_scale: bool = False,
    ):
        super().__init__()
        for name, value in (("label_smoothing", label_smoothing), ("scheduled_sampling", scheduled_sampling)):
            if not 0 <= value < 1:
                raise ValueError(f"model.{name} is {value}: it must lie in [0, 1)")
        if z_loss < 0:
            raise ValueError(f"model.z_loss is {z_loss}: it must not be negative")
        if checkpoint_blocks < 0:
            raise ValueError(f"model.checkpoint_blocks is {checkpoint_blocks}: it must not be negative")
        if ema_half_life_tokens is not None and ema_half_life_tokens < 1:
            raise ValueError(f"model.ema_half_life_tokens is {ema_half_life_tokens}: it must be at least 1, or null")
        self.architecture, self.optimizer, self.schedule = architecture, optimizer, schedule
        self.ema_half_life_tokens, self.noise_scale = ema_half_life_tokens, noise_scale
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.scheduled_sampling, self.pretrained = scheduled_sampling, pretrained
        self.compiled, self.checkpoint_blocks = compile, checkpoint_blocks
        self.loaded: dict[str, Any] = {"step": 0, "tokens_seen": 0}
        self.step_ended = True
        """Whether the micro-batch in hand, or the last one, is the last of its global batch."""
        self.validation_due = False
        """Whether the run stopped before a validation of the weights in hand was done."""
        self.carried: CarriedState | None = None
        self.masters: MasterWeights | None = None
        """The optimizer, where the model's own weights are of half precision and the strategy keeps no better ones."""
        self.averaged: AveragedWeights | None = None
        """The moving average of the weights, in training that keeps one."""
        self.judge: Callable[[Tensor | float], bool] | None = None
        """Asked on every rank, with the norm of the gradient of all ranks before clipping, whether to leave this step out."""
        self.withdraw: Callable[[], None] | None = None
        """Given by who judges, where the step that is left out is not to count either."""
        self.left_out: Container[int] = ()
        """Steps, counted from 1, that are passed over without being computed."""
        self.passed_over = False
        """Whether the step in hand is one of them."""
        self.step_skipped = False
        """Whether the step in hand, or the last one, has left everything as it was: it was passed over, or judged unfit."""
        self.notes: dict[str, Any] = {}
        """What others add to the record of every checkpoint; plain values."""
        self.gradient_norms: tuple[list[str], Tensor] | None = None
        """Of the last step, before clipping: the norm of each parameter's gradient; None where the strategy clips."""
        self.evaluation: dict[str, Any] = {}
        """Of the last pass over an evaluation split: loss, perplexity, bits per byte, accuracy, loss by position."""

    @property
    def data(self) -> TokenDataModule:
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def outline(self) -> LanguageModel:
        """The model as shapes without numbers, whole even where each rank has but a part of it."""
        with torch.device("meta"):
            return self.architecture.build()

    def configure_model(self) -> None:
        """Build the model where the strategy wants it; called once before each use of the Trainer."""
        if hasattr(self, "model"):
            return
        self.model: LanguageModel = self.architecture.build()
        self.refuse_unfit_data()
        if self.pretrained and self.trainer.state.fn == "fit":
            load_pretrained(self.model, self.pretrained, tokenizer=self.data.manifest.tokenizer)
        if self.checkpoint_blocks:
            try:
                self.model.recompute_blocks(self.checkpoint_blocks)
            except ValueError as error:
                raise InputError(f"model.{error}") from error
        if self.compiled:
            # In place, and the model alone: strategies wrap this module and hook into those below.
            self.model.compile()

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.ema_half_life_tokens:
            self.averaged = AveragedWeights(self.trainer.strategy.local_state)  # pyright: ignore[reportAttributeAccessIssue]
        shards, model = self.data.manifest.vocab_size, self.architecture.vocab_size
        if shards != model:
            raise InputError(
                f"Shards were written with a vocabulary of {shards}, the model has {model}: "
                "set model.architecture.vocab_size or run data_prep tokenize again"
            )

    def refuse_unfit_data(self) -> None:
        """Raise InputError where this model cannot train on what the data module gives."""
        order, family, classes = self.data.order, self.architecture.family, getattr(self.architecture, "classes", None)
        limit = self.model.context
        if limit is not None and self.data.context > limit:
            raise InputError(
                f"data.context {self.data.context} is longer than the model's context of {limit}: "
                "lower data.context or raise model.architecture.context"
            )
        if order == "stream" and not self.model.carries_state:
            raise InputError(
                f"data.order is stream, but a {family} has no state to carry from batch to batch: use shuffled, or a recurrent model"
            )
        labels = len(self.data.labels or ())
        if labels != (classes or 0):
            raise InputError(
                f"data.labels names {labels} classes, the {family} has {classes or 'none'}: "
                "labels and model.architecture.classes go together, with a ClassifierConfig"
            )
        if self.model.reads_source != (order == "pairs" and not labels):
            raise InputError(
                f"data.order is {order}, but the model is a {family}: encoder-decoders train on data.order pairs without labels, "
                "and nothing else does"
            )
        boundary, end = getattr(self.architecture, "document_end", None), self.data.manifest.end_of_text
        if boundary not in (None, end):
            raise InputError(
                f"model.architecture.document_end is {boundary}, but documents of these shards end with token {end}: set it to that"
            )
        if self.scheduled_sampling and not self.model.reads_source:
            raise InputError(
                f"model.scheduled_sampling is for encoder-decoders, the model is a {family}: leave it at 0"
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer.build(self)
        if self.trainer.strategy.keeps_master_weights or all(p.dtype == torch.float32 for p in self.parameters()):  # pyright: ignore[reportAttributeAccessIssue]
            return optimizer
        self.masters = MasterWeights(optimizer)
        return self.masters

    # -- training

    def on_train_start(self) -> None:
        self.step_nll = torch.zeros((), device=self.device, dtype=torch.float64)
        if self.data.order == "stream":
            self.carried = CarriedState(self.model, self.data.sequences)
            if "carried" in self.loaded and self.trainer.global_step:
                self.carried.load(self.loaded.pop("carried"))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.step_begins, self.step_ended = self.step_ended, batch.ends_step
        if self.step_begins:
            self.step_skipped = self.passed_over = self.trainer.global_step + 1 in self.left_out
            if self.carried and self.judge and not self.passed_over:
                self.carried.keep()
        # Dropout is a function of the place in the order, so a resumed run draws what an uninterrupted one would.
        torch.manual_seed(hash((self.data.seed, int(batch.samples_B[0]))))
        rate = self.learning_rate(self.trainer.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def learning_rate(self, step: int) -> float:
        """The rate of the optimizer step that follows `step` others; warm-up starts above 0."""
        tokens = self.data.tokens_at(step + 1)
        return self.optimizer.learning_rate * self.schedule.multiplier(tokens, self.data.tokens_at(self.data.steps))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        tokens_BT = batch.tokens_BT
        if self.scheduled_sampling:
            assert isinstance(self.model, EncoderDecoder)
            assert batch.source_BS is not None
            share = self.scheduled_sampling * self.trainer.global_step / max(1, self.data.steps - 1)
            tokens_BT = mix_inputs(self.model, tokens_BT, batch.source_BS, share)
        targets = Targets(batch.targets_BT, self.label_smoothing, self.z_loss)
        scores, state = self.model(tokens_BT, self.state_before(batch, self.carried), targets)
        if self.carried:
            self.carried.write(self.rows_of(batch), state)
        self.step_nll += scores.nll_BT.sum()
        # Sum, not mean: micro-batches may hold different numbers of valid tokens. The strategies average over the ranks,
        # so their number is multiplied back.
        return scores.loss / batch.valid_tokens * self.trainer.world_size

    def state_before(self, batch: Batch, carried: CarriedState | None) -> Any:
        """What the model has read before this batch: a source, the stream so far, or nothing."""
        if batch.source_BS is not None:
            assert isinstance(self.model, EncoderDecoder)
            return self.model.encode(batch.source_BS)
        return carried.read(self.rows_of(batch)) if carried and batch.continues else None

    def rows_of(self, batch: Batch) -> Tensor:
        """The row of the global batch that each row of a micro-batch is."""
        return batch.samples_B % self.data.sequences

    def on_after_backward(self) -> None:
        if self.masters:
            self.masters.take_gradients()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        limit = gradient_clip_val if gradient_clip_val else math.inf
        self.gradient_limit = limit
        if self.trainer.strategy.clips_gradients:  # pyright: ignore[reportAttributeAccessIssue]
            return  # It clips on its own, and knows the norm afterwards.
        parameters = self.with_gradients()
        norms_P = clip_gradients(parameters.values(), limit)
        self.gradient_norms, self.gradient_norm = ([*parameters], norms_P), torch.linalg.vector_norm(norms_P)
        if self.refuses_step(self.gradient_norm):
            # An optimizer passes over what has no gradient: no update, no decay, no count.
            for parameter in parameters.values():
                parameter.grad = None

    def refuses_step(self, norm: Tensor | float) -> bool:
        """Whether the step in hand, with this norm of the gradient of all ranks, is left out; every rank calls it before the step."""
        self.step_skipped = self.judge is not None and self.judge(norm)
        if self.step_skipped and self.carried:
            self.carried.go_back()
        return self.step_skipped

    def with_gradients(self) -> dict[str, torch.nn.Parameter]:
        """The parameters, or their masters, that have a gradient now, by their names in the model."""
        named: dict[str, Any] = dict(self.model.named_parameters())
        if self.masters:
            named = {name: self.masters.master_of(parameter) for name, parameter in named.items()}
        return {name: parameter for name, parameter in named.items() if parameter.grad is not None}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if self.step_begins:
            optimizer.zero_grad()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.withdraw:
            answer, self.withdraw = self.withdraw, None
            raise StepWithdrawn(answer)
        # With the step itself, before anything that follows it looks at the average or saves it.
        if self.averaged and self.ema_half_life_tokens and self.step_ended and not self.step_skipped:
            done = self.trainer.global_step  # without this step
            before, after = self.data.tokens_at(done), self.data.tokens_at(done + 1)
            self.averaged.update(share_of_step(before, after, self.ema_half_life_tokens))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.step_ended:
            self.step_nll.zero_()

    def validation_follows(self) -> bool:
        """Whether the loop validates after the step that has just ended."""
        step = self.trainer.global_step
        return step >= self.trainer.max_steps or self.data.due(step, self.data.validate_every_tokens)

    def progress(self) -> dict[str, int]:
        """Optimizer steps that the weights in hand have had, and the tokens of those: `step`, `tokens_seen`."""
        if self.trainer.state.fn != "fit":
            return {name: self.loaded[name] for name in ("step", "tokens_seen")}
        step = self.trainer.global_step
        return {"step": step, "tokens_seen": self.data.tokens_at(step)}

    def measure_step(self, valid_tokens: int) -> dict[str, float]:
        """Loss (nats per token of the global batch), gradient norms and learning rate of the step that has just ended; `train/skipped`
        where it changed nothing, alone where it was not even computed."""
        if self.passed_over:
            return {"train/skipped": 1.0}
        loss = float(self.trainer.strategy.reduce(self.step_nll.clone(), reduce_op="sum")) / valid_tokens
        strategy = self.trainer.strategy
        norm = strategy.gradient_norm if strategy.clips_gradients else float(self.gradient_norm)  # pyright: ignore[reportAttributeAccessIssue]
        return {
            "train/loss": loss,
            "train/perplexity": metrics.perplexity(loss),
            "train/grad_norm": norm,
            "train/grad_norm_clipped": min(norm, self.gradient_limit),
            "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
            **({"train/skipped": 1.0} if self.step_skipped else {}),
        }

    # -- evaluation

    def on_validation_epoch_start(self) -> None:
        self.begin_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation("validation")
        for name, value in self.scores().items():
            # For callbacks that watch a metric; the loggers get theirs, exactly, from MetricsLog.
            self.log(f"val/{name}", value, logger=False, sync_dist=True)

    def scores(self) -> dict[str, float]:
        """The figures of merit of the last pass over an evaluation split that apply to this run."""
        names = ("loss", "perplexity", "bits_per_byte", "accuracy")
        return {name: self.evaluation[name] for name in names if self.evaluation[name] is not None}

    def on_test_epoch_start(self) -> None:
        self.begin_evaluation()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def on_test_epoch_end(self) -> None:
        self.finish_evaluation("test")

    def on_predict_epoch_start(self) -> None:
        self.begin_evaluation()

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Each sequence's number and the loss of each of its tokens in nats: samples_B, nll_BT (nan where there is no target)."""
        nll_BT = self.evaluation_scores(batch).nll_BT
        return batch.samples_B, nll_BT.masked_fill(batch.targets_BT == NO_TOKEN, math.nan)

    def begin_evaluation(self) -> None:
        zeros_T = torch.zeros(self.data.context, device=self.device, dtype=torch.float64)
        self.sums = {name: zeros_T.clone() for name in ("nll", "tokens", "bytes", "right")}
        self.evaluation_state: Any = None
        # Classes are not text.
        texts = (
            self.data.token_bytes() if self.data.labels is None else np.zeros(self.architecture.vocab_size, np.int64)
        )
        self.bytes_V = torch.from_numpy(texts).to(self.device)

    def evaluation_scores(self, batch: Batch) -> Scores:
        """What the model says of a batch; where it goes on from the one before, so does the state."""
        state = self.evaluation_state if batch.continues else self.state_before(batch, None)
        scores, self.evaluation_state = self.model(batch.tokens_BT, state, Targets(batch.targets_BT))
        return scores

    def evaluate_batch(self, batch: Batch) -> None:
        scores, targets_BT = self.evaluation_scores(batch), batch.targets_BT
        assert scores.right_BT is not None
        valid_BT = targets_BT != NO_TOKEN
        for name, value_BT in (
            ("nll", scores.nll_BT),
            ("tokens", valid_BT),
            ("bytes", self.bytes_V[targets_BT.clamp(min=0)] * valid_BT),
            ("right", scores.right_BT),
        ):
            # A stream's batch is several contexts long; its positions are not told apart below.
            for part_BT in value_BT.split(self.data.context, dim=1):
                self.sums[name][: part_BT.shape[1]] += part_BT.sum(0)

    def finish_evaluation(self, split: str) -> None:
        totals = {name: self.trainer.strategy.reduce(value, reduce_op="sum").cpu() for name, value in self.sums.items()}
        nats, tokens, text_bytes, right = (float(totals[name].sum()) for name in ("nll", "tokens", "bytes", "right"))
        self.evaluation = {
            "split": split,
            "loss": nats / tokens,
            "perplexity": metrics.perplexity(nats / tokens),
            "bits_per_byte": metrics.bits_per_byte(nats, int(text_bytes)) if text_bytes else None,
            "accuracy": right / tokens,
            "tokens": int(tokens),
            "bytes": int(text_bytes),
        }
        if self.data.order != "stream" and self.data.labels is None:
            by_position = totals["nll"] / totals["tokens"].clamp(min=1)
            self.evaluation["loss_by_position"] = by_position[totals["tokens"] > 0].tolist()

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD_KEY] = {
            "format": 1,
            "model": describe_model(self.architecture),
            "data": self.data.identity(),
            "batches": self.data.batches.history(),
            "order_since": self.data.order_since,
            **self.progress(),
            **self.notes,
        }
        if self.validation_due:
            checkpoint[RECORD_KEY]["validation_due"] = True
        if self.carried:
            checkpoint[RECORD_KEY]["carried"] = self.carried.gather(
                lambda part: self.trainer.strategy.reduce(part, reduce_op="sum")
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other_run(
            checkpoint.get(RECORD_KEY), model=describe_model(self.architecture), data=self.data.identity(),
            training=self.trainer.state.fn == "fit", allowed=self.data.allow_changes,
        )  # fmt: skip
        self.loaded = checkpoint[RECORD_KEY]
        if self.trainer.state.fn == "fit":
            self.data.go_on_from(self.loaded)
            self.validation_due = self.loaded.get("validation_due", False)
            self.count_batches(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])

    def count_batches(self, progress: dict[str, Any]) -> None:
        """Lightning's count of micro-batches, as this number of ranks and this micro-batch would have it."""
        done = self.data.batches_before(self.loaded["step"])
        for counts in (progress["total"], progress["current"]):
            unfinished = counts["ready"] - counts["completed"]
            counts |= {"ready": done, "started": done, "processed": done, "completed": done - unfinished}
