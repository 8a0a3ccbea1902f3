"""The DataModule: from a folder of token shards and sizes in tokens to loaders, steps and accumulation for any number of ranks."""

from pathlib import Path

import numpy as np
from lightning import LightningDataModule

from data_prep.files import InputError
from data_prep.shards import Manifest, TokenReader
from data_prep.tokenizer import Tokenizer
from pipeline.batch import EvaluationLoader, TrainingLoader
from pipeline.order import SampleOrder

FULL_CHECK_BYTES = 1 << 30
"""Splits up to this size have every checksum read at the start; larger ones their sizes only (`data_prep verify` reads all)."""

SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}


class TokenDataModule(LightningDataModule):
    """Batches from token shards.

    Args:
        path: Folder with manifest.json, as `python -m data_prep run` writes it.
        context: Tokens in a training sequence.
        batch_tokens: Tokens in a global batch, over all ranks and accumulated micro-batches.
        micro_batch: Sequences that one rank takes through the model at once.
        total_tokens: Tokens to train on in all; the run ends there.
        seed: Of the order of samples and of dropout.
        validate_every_tokens: Tokens between two validations; only at the end when not given.
        validation_tokens: Tokens of the split that a validation reads; all of them when not given.
    """

    def __init__(
        self,
        path: str,
        context: int,
        batch_tokens: int,
        micro_batch: int,
        total_tokens: int,
        seed: int = 0,
        validate_every_tokens: int | None = None,
        validation_tokens: int | None = None,
    ):
        super().__init__()
        for name, value in (("context", context), ("micro_batch", micro_batch), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise ValueError(f"data.{name} is {value}: it must be at least 1")
        if batch_tokens % context:
            nearest = max(1, round(batch_tokens / context)) * context
            raise ValueError(
                f"data.batch_tokens {batch_tokens} is not a whole number of sequences of {context} tokens: {nearest} is"
            )
        if total_tokens < batch_tokens:
            raise ValueError(
                f"data.total_tokens {total_tokens} is less than one batch of {batch_tokens} tokens: raise it or lower batch_tokens"
            )
        self.path, self.context, self.batch_tokens, self.micro_batch = Path(path), context, batch_tokens, micro_batch
        self.total_tokens, self.seed = total_tokens, seed
        self.validate_every_tokens, self.validation_tokens = validate_every_tokens, validation_tokens
        self.manifest = Manifest.load(self.path)
        self.readers: dict[str, TokenReader] = {}

    @property
    def sequences(self) -> int:
        """Sequences in a global batch."""
        return self.batch_tokens // self.context

    @property
    def steps(self) -> int:
        """Optimizer steps in the run."""
        return self.total_tokens // self.batch_tokens

    def tokens_at(self, step: int) -> int:
        """Tokens trained on after `step` optimizer steps."""
        return step * self.batch_tokens

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token id stands for, (vocab_size,)."""
        return Tokenizer.load(self.path).token_bytes()

    def identity(self) -> dict:
        """What decides which tokens each step sees: a run can only be continued where all of it is the same."""
        return {
            "fingerprint": self.manifest.fingerprint,
            "tokenizer": self.manifest.tokenizer,
            "context": self.context,
            "batch_tokens": self.batch_tokens,
            "seed": self.seed,
        }

    def setup(self, stage: str) -> None:
        for split in SPLITS[stage]:
            self.readers[split] = self.open(split)
        if stage == "fit":
            self.divide_batch()

    def open(self, split: str) -> TokenReader:
        if split not in self.manifest.splits:
            raise InputError(f"{self.path} has no split {split!r}, only {', '.join(self.manifest.splits)}: prepare one")
        reader = self.manifest.open(split)
        need = self.context + 1 if split == "train" else 2
        if len(reader) < need:
            raise InputError(
                f"The {split} split of {self.path} has {len(reader)} tokens, fewer than one sequence of {need}: "
                "prepare more text or lower data.context"
            )
        if len(reader) * np.dtype(self.manifest.dtype).itemsize <= FULL_CHECK_BYTES and self.rank == 0:
            self.manifest.verify(split)
        return reader

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def divide_batch(self) -> None:
        """Tell the Trainer, which counts micro-batches, how many of them a step, a validation interval and the run have."""
        assert self.trainer is not None
        together = self.micro_batch * self.ranks
        if self.sequences % together:
            raise InputError(
                f"A batch of {self.sequences} sequences (data.batch_tokens / data.context) does not divide into micro-batches "
                f"of {self.micro_batch} on {self.ranks} rank(s): make data.micro_batch a divisor of {self.sequences // self.ranks or 1}"
            )
        self.trainer.accumulate_grad_batches = self.sequences // together
        if self.trainer.max_steps == -1 or self.trainer.max_steps > self.steps:
            self.trainer.fit_loop.epoch_loop.max_steps = self.steps
        steps_between = max(1, round((self.validate_every_tokens or self.total_tokens) / self.batch_tokens))
        self.trainer.val_check_interval = min(steps_between, self.steps) * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> TrainingLoader:
        reader = self.readers["train"]
        order = SampleOrder(self.manifest.fingerprint, self.seed, (len(reader) - 1) // self.context)
        return TrainingLoader(
            reader, order, context=self.context, steps=self.steps, sequences=self.sequences,
            micro_batch=self.micro_batch, rank=self.rank, ranks=self.ranks,
        )  # fmt: skip

    def val_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> EvaluationLoader:
        return EvaluationLoader(
            self.readers[split], context=self.context, micro_batch=self.micro_batch, rank=self.rank, ranks=self.ranks,
            limit=self.validation_tokens,
        )  # fmt: skip
