"""The DataModule: from a folder of token shards and sizes in tokens to loaders, steps and accumulation for any number of ranks."""

from pathlib import Path
from typing import Literal

import numpy as np
from lightning import LightningDataModule

from data_prep.files import InputError
from data_prep.shards import Manifest, TokenReader
from data_prep.tokenizer import Tokenizer
from pipeline.batch import Pairs, Samples, Streams, Windows
from pipeline.loader import EvaluationLoader, PairEvaluation, StreamEvaluation, TrainingLoader, WindowEvaluation

FULL_CHECK_BYTES = 1 << 30
"""Splits up to this size have every checksum read at the start; larger ones their sizes only (`data_prep verify` reads all)."""

LOOKED_AT = 10_000
"""Pairs of a split whose labels are checked at the start."""

SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}


class TokenDataModule(LightningDataModule):
    """Batches from token shards.

    Args:
        path: Folder with manifest.json, as `python -m data_prep run` writes it.
        context: Tokens in a training sequence; of pairs, the longest source and the longest target.
        batch_tokens: Tokens in a global batch, over all ranks and accumulated micro-batches; of pairs, the most that fit.
        micro_batch: Sequences that one rank takes through the model at once.
        total_tokens: Tokens to train on in all; the run ends there.
        total_epochs: Passes over the train split to train for, instead of total_tokens.
        order: `shuffled`: windows of the corpus, each by itself. `stream`: rows that go on from batch to batch with the state of a
            recurrent model carried over. `pairs`: sources and targets, or texts with a label.
        labels: With `pairs`: the classes, each written as in the corpus; the model then predicts one of them at a text's end.
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
        total_tokens: int | None = None,
        total_epochs: float | None = None,
        order: Literal["shuffled", "stream", "pairs"] = "shuffled",
        labels: list[str] | None = None,
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
        if (total_tokens is None) == (total_epochs is None):
            raise ValueError(
                f"data.total_tokens is {total_tokens} and data.total_epochs {total_epochs}: give one of the two"
            )
        if total_tokens is not None and total_tokens < batch_tokens:
            raise ValueError(
                f"data.total_tokens {total_tokens} is less than one batch of {batch_tokens} tokens: raise it or lower batch_tokens"
            )
        if labels is not None and (order != "pairs" or len(set(labels)) < 2):
            raise ValueError(
                f"data.labels {labels} with data.order {order}: give two labels or more, and data.order pairs"
            )
        self.path, self.context, self.batch_tokens, self.micro_batch = Path(path), context, batch_tokens, micro_batch
        self.total_tokens, self.total_epochs, self.order, self.labels = total_tokens, total_epochs, order, labels
        self.seed, self.validate_every_tokens, self.validation_tokens = seed, validate_every_tokens, validation_tokens
        self.manifest = Manifest.load(self.path)
        if order == "pairs" and not self.manifest.pairs:
            raise ValueError(
                f"data.order is pairs, but {path} holds plain documents: use order shuffled or stream, or prepare pairs"
            )
        self.readers: dict[str, TokenReader] = {}

    @property
    def sequences(self) -> int:
        """Sequences in a global batch."""
        return self.batch_tokens // self.context

    def tokens_at(self, step: int) -> int:
        """Tokens trained on after `step` optimizer steps; of pairs, the average over an epoch of so many."""
        return round(step * self.sequences * self.samples.mean_tokens)

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
            "order": self.order,
            "labels": self.labels,
            "seed": self.seed,
        }

    def setup(self, stage: str) -> None:
        self.label_tokens = None
        if self.labels is not None:
            self.label_tokens = [Tokenizer.load(self.path).encode(label) for label in self.labels]
        for split in SPLITS[stage]:
            self.readers[split] = self.open(split)
            if self.label_tokens is not None:
                self.refuse_unknown_labels(split, self.label_tokens)
        if stage == "fit":
            self.samples = self.training_samples()
            self.steps = self.count_steps()
            self.divide_batch()

    def open(self, split: str) -> TokenReader:
        if split not in self.manifest.splits:
            raise InputError(f"{self.path} has no split {split!r}, only {', '.join(self.manifest.splits)}: prepare one")
        reader = self.manifest.open(split)
        need = self.context + 1 if split == "train" and self.order != "pairs" else 2
        if len(reader) < need:
            raise InputError(
                f"The {split} split of {self.path} has {len(reader)} tokens, fewer than one sequence of {need}: "
                "prepare more text or lower data.context"
            )
        if len(reader) * np.dtype(self.manifest.dtype).itemsize <= FULL_CHECK_BYTES and self.rank == 0:
            self.manifest.verify(split)
        return reader

    def refuse_unknown_labels(self, split: str, labels: list[list[int]]) -> None:
        """Raise InputError if a target among the first pairs of a split is none of the labels; later ones meet the same in `batch`."""
        reader = self.readers[split]
        targets = {
            tuple(target[:-1].tolist()) for _, target in reader.gather_pairs(range(min(reader.pairs, LOOKED_AT)))
        }
        if unknown := targets - {tuple(label) for label in labels}:
            names = ", ".join(repr(Tokenizer.load(self.path).decode(target)) for target in sorted(unknown)[:3])
            raise InputError(
                f"The {split} split of {self.path} has labels that data.labels {self.labels} does not name: {names}: name every label"
            )

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def training_samples(self) -> Samples:
        """The train split in this run's order.

        Raises:
            InputError: it is too small for one batch, or for one sample.
        """
        reader, fingerprint = self.readers["train"], self.manifest.fingerprint
        if self.order == "stream":
            samples = Streams(reader, context=self.context, sequences=self.sequences)
            need = self.sequences * (self.context + 1)
        elif self.order == "pairs":
            samples = Pairs(
                reader, fingerprint, self.seed, context=self.context, sequences=self.sequences,
                start=self.manifest.end_of_text, labels=self.label_tokens,
            )  # fmt: skip
            need = 1
        else:
            samples = Windows(reader, fingerprint, self.seed, context=self.context, sequences=self.sequences)
            need = self.context + 1
        if samples.epoch < 1:
            raise InputError(
                f"The train split of {self.path} has no sample within data.context {self.context} (it has {len(reader)} tokens, "
                f"and an order {self.order} needs {need} or more): prepare more text, or change data.context or data.batch_tokens"
            )
        return samples

    def count_steps(self) -> int:
        """Optimizer steps in the run.

        Raises:
            InputError: not one.
        """
        per_step = self.sequences * self.samples.mean_tokens
        wanted = (
            self.total_tokens / per_step
            if self.total_tokens is not None
            else (self.total_epochs or 0) * self.samples.epoch / self.sequences
        )
        if wanted < 1:
            raise InputError(
                f"The run would end before its first step of about {per_step:.0f} tokens: "
                "raise data.total_tokens or data.total_epochs, or lower data.batch_tokens"
            )
        return int(wanted)

    def due(self, step: int, every_tokens: int | None) -> bool:
        """Whether `step` optimizer steps reach or pass a multiple of so many tokens that one step fewer does not."""
        return (
            every_tokens is not None and self.tokens_at(step) // every_tokens > self.tokens_at(step - 1) // every_tokens
        )

    def divide_batch(self) -> None:
        """Tell the Trainer how many steps the run has, after seeing that the ranks can share a global batch evenly."""
        assert self.trainer is not None
        together = self.micro_batch * self.ranks
        if self.sequences % together:
            raise InputError(
                f"A batch of {self.sequences} sequences (data.batch_tokens / data.context) does not divide into micro-batches "
                f"of {self.micro_batch} on {self.ranks} rank(s): make data.micro_batch a divisor of {self.sequences // self.ranks or 1}"
            )
        if self.trainer.max_steps == -1 or self.trainer.max_steps > self.steps:
            self.trainer.fit_loop.epoch_loop.max_steps = self.steps

    def train_dataloader(self) -> TrainingLoader:
        return TrainingLoader(
            self.samples, steps=self.steps, sequences=self.sequences, micro_batch=self.micro_batch,
            rank=self.rank, ranks=self.ranks,
        )  # fmt: skip

    def val_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> EvaluationLoader:
        reader, limit = self.readers[split], self.validation_tokens
        if self.order == "stream":
            # One row as long as a training micro-batch: the memory of a step, and the whole past for every token.
            chunk = self.context * self.micro_batch
            return StreamEvaluation(reader, chunk=chunk, rank=self.rank, ranks=self.ranks, limit=limit)
        if self.order == "pairs":
            return PairEvaluation(
                reader, context=self.context, micro_batch=self.micro_batch, rank=self.rank, ranks=self.ranks,
                start=self.manifest.end_of_text, labels=self.label_tokens, limit=limit,
            )  # fmt: skip
        return WindowEvaluation(
            reader, context=self.context, micro_batch=self.micro_batch, rank=self.rank, ranks=self.ranks, limit=limit
        )
