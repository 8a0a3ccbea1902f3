"""The DataModule: from folders of token shards and sizes in tokens to loaders, steps and accumulation for any number of ranks."""

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from data_prep.files import InputError, read_json
from data_prep.shards import Manifest, TokenReader
from data_prep.tokenizer import Tokenizer
from pipeline.batch import MixedWindows, Pairs, Samples, Streams
from pipeline.batch_schedule import BatchRamp, BatchSchedule, last_within
from pipeline.loader import EvaluationLoader, PairEvaluation, StreamEvaluation, TrainingLoader, WindowEvaluation
from pipeline.mixture import Mixture
from pipeline.mixture_parts import MixturePart, mixture_weights, normalised

FULL_CHECK_BYTES = 1 << 30
"""Splits up to this size have every checksum read at the start; larger ones their sizes only (`data_prep verify` reads all)."""

LOOKED_AT = 10_000
"""Pairs of a split whose labels are checked at the start."""

SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}

Change = Literal[
    "fingerprint", "tokenizer", "mixture", "seed", "batch_tokens", "batch_ramp", "context", "context_schedule"
]
"""What of a run's identity may be changed on purpose when it goes on."""

SIZES = ("batch_tokens", "context", "batch_ramp", "context_schedule")
"""What of it decides how many samples a step has, and how long they are."""


class TokenDataModule(LightningDataModule):
    """Batches from token shards.

    Args:
        path: Folder with manifest.json, as `python -m data_prep run` writes it. With a mixture, where validation reads.
        context: Tokens in a training sequence (the longest, with a context_schedule); of pairs, the longest source and the longest
            target.
        batch_tokens: Tokens in a global batch, over all ranks and accumulated micro-batches; of pairs, the most that fit.
        micro_batch: Sequences that one rank takes through the model at once; of a shorter context as many more.
        total_tokens: Tokens to train on in all; the run ends there.
        total_epochs: Passes over the train split to train for, instead of total_tokens.
        order: `shuffled`: windows of the corpus, each by itself. `stream`: rows that go on from batch to batch with the state of a
            recurrent model carried over. `pairs`: sources and targets, or texts with a label.
        labels: With `pairs`: the classes, each written as in the corpus; the model then predicts one of them at a text's end.
        seed: Of the order of samples and of dropout.
        mixture: Parts of the corpus to train on, by name, with their weights: sources of `path`, or other folders. Every stretch of
            the run has them in these shares, to within 2 samples.
        batch_ramp: Smaller batches to begin with.
        context_schedule: Contexts by the tokens of the run from which on they hold, such as {0: 256, 1000000: 512}; each divides
            `context`, and batch_tokens stay.
        validate_every_tokens: Tokens between two validations; only at the end when not given.
        validation_tokens: Tokens of the split that a validation reads; all of them when not given.
        prefetch: Micro-batches that a thread makes ahead while the model computes; 0: each is made when its turn comes.
        allow_changes: What may differ from the checkpoint that a run goes on from. After another seed, mixture, fingerprint or
            tokenizer, the samples are those that a run with these settings from its beginning would see from that position on, so in
            the epoch of the change one may come twice, or not at all. After other sizes the samples go on where they stood, in batches of
            the new size (of another context: in an epoch of its own); steps and tokens seen keep counting, and batch_ramp and
            context_schedule look at the tokens of the whole run.
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
        mixture: dict[str, MixturePart] | None = None,
        batch_ramp: BatchRamp | None = None,
        context_schedule: dict[int, int] | None = None,
        validate_every_tokens: int | None = None,
        validation_tokens: int | None = None,
        prefetch: int = 2,
        allow_changes: list[Change] | None = None,
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
        for name, value in (("mixture", mixture), ("batch_ramp", batch_ramp), ("context_schedule", context_schedule)):
            if value is not None and order != "shuffled":
                raise ValueError(
                    f"data.{name} is for data.order shuffled, the order is {order}: leave it out, or change the order"
                )
        if context_schedule and total_epochs is not None:
            raise ValueError("data.total_epochs with data.context_schedule has no meaning: give data.total_tokens")
        self.batches = BatchSchedule(batch_tokens, context, ramp=batch_ramp, contexts=context_schedule)
        first = self.batches.segments[0].batch_tokens
        if total_tokens is not None and total_tokens < first:
            raise ValueError(
                f"data.total_tokens {total_tokens} is less than one batch of {first} tokens: raise it or lower batch_tokens"
            )
        if labels is not None and (order != "pairs" or len(set(labels)) < 2):
            raise ValueError(
                f"data.labels {labels} with data.order {order}: give two labels or more, and data.order pairs"
            )
        self.path, self.context, self.batch_tokens, self.micro_batch = Path(path), context, batch_tokens, micro_batch
        self.total_tokens, self.total_epochs, self.order, self.labels = total_tokens, total_epochs, order, labels
        self.seed, self.validate_every_tokens, self.validation_tokens = seed, validate_every_tokens, validation_tokens
        if prefetch < 0:
            raise ValueError(f"data.prefetch is {prefetch}: it must be at least 0")
        self.prefetch = prefetch
        self.batch_ramp, self.context_schedule, self.allow_changes = (
            batch_ramp,
            context_schedule or None,
            allow_changes or [],
        )
        self.manifest = Manifest.load(self.path)
        self.mixture, self.weights, self.part_manifests = mixture or None, {"train": 1}, {"train": self.manifest}
        if mixture:
            self.open_parts(mixture)
        if order == "pairs" and not self.manifest.pairs:
            raise ValueError(
                f"data.order is pairs, but {path} holds plain documents: use order shuffled or stream, or prepare pairs"
            )
        self.readers: dict[str, TokenReader] = {}
        """By split; with a mixture, there is none for train."""
        self.parts: list[TokenReader] = []
        """What there is to train on, in the order of `part_manifests`; the spans of samples say which of them they lie in."""
        self.planned_steps = -1
        self.order_since = 0
        """The steps of the run so far that read their samples in another order, before something was allowed to change."""

    @classmethod
    def of_run(cls, run: str | Path) -> "TokenDataModule":
        """The data that a run trains on, laid out as in its training, without a Trainer and without reading every checksum.

        Raises:
            InputError: there is no such run, or its token folders are gone or hold something else now.
        """
        config, record = Path(run) / "config.yaml", Path(run) / "run.json"
        for file in (config, record):
            if not file.is_file():
                raise InputError(f"There is no {file.name} in {run}: give the directory of a run that `fit` has begun")
        content, trained = yaml.safe_load(config.read_text(encoding="utf-8")), read_json(record)["data"]
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, "data")
        try:
            data: TokenDataModule = parser.instantiate_classes(parser.parse_object({"data": content["data"]}))["data"]
        except ArgumentError as error:
            raise InputError(f"{config} is not as `fit` wrote it: {' '.join(str(error).split())}") from error
        changed = [
            f"{name} was {trained.get(name)}, is {value}"
            for name, value in json.loads(json.dumps(data.identity())).items()
            if trained.get(name) != value
        ]
        if changed:
            raise InputError(
                f"{data.path} is not what {run} was trained on ({'; '.join(changed)}): put its token folder back"
            )
        data.setup("fit")
        if content["trainer"]["max_steps"] >= 0:
            data.steps = min(data.steps, content["trainer"]["max_steps"])
        return data

    def open_parts(self, mixture: dict[str, MixturePart]) -> None:
        """Find the shards and the weights of a mixture's parts. Raises InputError where they do not go together."""
        # By name, so that the order in which a YAML lists them means nothing.
        parts = dict(sorted(mixture.items()))
        given = {name: part.weight for name, part in parts.items()}
        self.weights = mixture_weights(given)
        if abs(sum(given.values()) - 1) > 1e-6:
            rank_zero_only(print)(normalised(given, self.weights))
        self.part_manifests = {name: part.manifest(name, self.path) for name, part in parts.items()}
        self.refuse_unfit_parts()

    @property
    def sequences(self) -> int:
        """Sequences in a global batch, when ramp and shorter contexts are over."""
        return self.batch_tokens // self.context

    def sequences_at(self, step: int) -> int:
        """Sequences in the global batch that follows `step` others."""
        return self.batches.sequences_at(step)

    def position_at(self, step: int) -> int:
        """Samples trained on after `step` optimizer steps: the position of the next in the run's order."""
        return self.batches.position_at(step)

    def tokens_at(self, step: int) -> int:
        """Tokens trained on after `step` optimizer steps; of pairs, the average over an epoch of so many."""
        if self.order == "pairs":
            return round(self.position_at(step) * self.samples.mean_tokens)
        return self.batches.tokens_at(step)

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each part of the corpus has been read through after `step` optimizer steps (Brown et al. 2020, table 2.2)."""
        return dict(zip(self.part_manifests, self.samples.epochs(self.position_at(step)), strict=True))

    def batch_sizes(self) -> str:
        """Tokens of the first and, where it differs, of the full batch, for people to read."""
        first = self.tokens_at(1)
        return f"{first:,}" + (f" to {self.batch_tokens:,}" if self.batch_ramp is not None else "")

    @property
    def train_tokens(self) -> int:
        """Tokens that there are to train on, in all parts."""
        return sum(manifest.tokens("train") for manifest in self.part_manifests.values())

    def refuse_unfit_parts(self) -> None:
        """Raise InputError where the parts of the mixture do not go together."""
        for name, manifest in self.part_manifests.items():
            if manifest.tokenizer != self.manifest.tokenizer:
                raise InputError(
                    f"data.mixture.{name} at {manifest.folder} was made with tokenizer {manifest.tokenizer[:12]}, "
                    f"data.path {self.path} with {self.manifest.tokenizer[:12]}: prepare both with one `tokenizer.path`"
                )
        for (one, first), (other, second) in combinations(self.part_manifests.items(), 2):
            if first.fingerprint == second.fingerprint:
                raise InputError(
                    f"data.mixture.{one} and data.mixture.{other} are the same tokens: leave out one of them"
                )

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
            "mixture": self.mixture
            and {name: [part.fingerprint, self.weights[name]] for name, part in self.part_manifests.items()},
            "batch_ramp": self.batch_ramp and asdict(self.batch_ramp) | {"multiple_tokens": self.batches.unit},
            "context_schedule": self.context_schedule and sorted([*change] for change in self.context_schedule.items()),
        }

    def setup(self, stage: str) -> None:
        self.label_tokens = None
        if self.labels is not None:
            self.label_tokens = [Tokenizer.load(self.path).encode(label) for label in self.labels]
        for split in SPLITS[stage]:
            if split == "train" and self.mixture is not None:
                continue
            self.readers[split] = self.open(split, self.manifest)
            if self.label_tokens is not None:
                self.refuse_unknown_labels(split, self.label_tokens)
        if stage == "fit":
            self.parts = [
                self.readers.get("train") or self.open("train", manifest) for manifest in self.part_manifests.values()
            ]
            self.plan_run()

    def plan_run(self) -> None:
        """Lay out the run: its samples and its number of steps, which the Trainer is told.

        Raises:
            InputError: there is not one sample or step, or the ranks cannot share the last batch evenly.
        """
        self.samples = self.training_samples()
        self.steps = self.count_steps()
        if self.trainer is not None:
            # Smaller batches of a ramp may lie behind a run that goes on, which is not known yet.
            self.refuse_uneven_batches(self.steps)
            loop = self.trainer.fit_loop.epoch_loop
            if loop.max_steps in (-1, self.planned_steps) or loop.max_steps > self.steps:
                loop.max_steps = self.planned_steps = self.steps

    def go_on_from(self, record: dict[str, Any]) -> None:
        """Take up the run that a checkpoint's record describes, with what differs now.

        Raises:
            InputError: the order of samples cannot go on with batches of other sizes.
        """
        was, now, history = record["data"], self.identity(), record.get("batches", {})
        changed = [name for name in now if was.get(name) != now[name]]
        self.order_since = record["step"] if set(changed) - set(SIZES) else record.get("order_since", 0)
        changed = [name for name in changed if name in SIZES]
        if changed:
            if self.order != "shuffled":
                raise InputError(
                    f"The samples of data.order {self.order} depend on the size of batches, so {' and '.join(changed)} "
                    "cannot change in a run: restore what it was"
                )
            history = BatchSchedule(**schedule_settings(was), **history).history(record["step"])
        if history.get("past"):
            self.batches = BatchSchedule(**schedule_settings(now), **history)
            self.plan_run()

    def open(self, split: str, manifest: Manifest) -> TokenReader:
        if split not in manifest.splits:
            raise InputError(
                f"{manifest.folder} has no split {split!r}, only {', '.join(manifest.splits)}: prepare one"
            )
        reader = manifest.open(split)
        need = self.context + 1 if split == "train" and self.order != "pairs" else 2
        if len(reader) < need:
            raise InputError(
                f"The {split} split of {manifest.folder} has {len(reader)} tokens, fewer than one sequence of {need}: "
                "prepare more text or lower data.context"
            )
        small = len(reader) * np.dtype(manifest.dtype).itemsize <= FULL_CHECK_BYTES
        if small and self.trainer is not None and self.rank == 0:
            manifest.verify(split)
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
        reader, fingerprint = self.parts[0], self.manifest.fingerprint
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
            names = [manifest.fingerprint for manifest in self.part_manifests.values()]
            parts = list(zip(self.parts, names, strict=True))
            samples = MixedWindows(parts, Mixture([*self.weights.values()]), self.seed, self.batches)
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
        if self.total_tokens is not None:
            steps = last_within(self.total_tokens, self.tokens_at)
        else:
            steps = last_within((self.total_epochs or 0) * self.samples.epoch, self.position_at)
        if steps < 1:
            raise InputError(
                f"The run would end before its first step of about {self.tokens_at(1)} tokens: "
                "raise data.total_tokens or data.total_epochs, or lower data.batch_tokens"
            )
        return steps

    def due(self, step: int, every_tokens: int | None) -> bool:
        """Whether `step` optimizer steps reach or pass a multiple of so many tokens that one step fewer does not."""
        return (
            every_tokens is not None and self.tokens_at(step) // every_tokens > self.tokens_at(step - 1) // every_tokens
        )

    def refuse_uneven_batches(self, step: int) -> None:
        """Raise InputError if the ranks cannot share every global batch from a step on."""
        unit = self.batches.divisor(step) // self.context
        if unit % (self.micro_batch * self.ranks):
            batches, growth = f"A batch of {unit} sequences (data.batch_tokens / data.context)", ""
            if self.batch_ramp is not None:
                batches = f"A ramp of batches in multiples of {unit} sequences"
                growth = ", or raise data.batch_ramp.multiple_tokens"
            raise InputError(
                f"{batches} does not divide into micro-batches of {self.micro_batch} on {self.ranks} rank(s): "
                f"make data.micro_batch a divisor of {unit // self.ranks or 1}{growth}"
            )

    def batches_before(self, step: int) -> int:
        """Micro-batches of one rank up to the end of `step` optimizer steps."""
        return self.batches.tokens_at(step) // (self.context * self.micro_batch * self.ranks)

    def train_dataloader(self) -> TrainingLoader:
        assert self.trainer is not None
        self.refuse_uneven_batches(self.trainer.global_step)
        return TrainingLoader(
            self.samples, steps=self.steps, micro_batch=self.micro_batch,
            rank=self.rank, ranks=self.ranks, prefetch=self.prefetch,
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


def schedule_settings(identity: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the BatchSchedule that a run's identity describes."""
    ramp, contexts = identity.get("batch_ramp"), identity.get("context_schedule")
    return {
        "batch_tokens": identity["batch_tokens"],
        "context": identity["context"],
        "ramp": ramp and BatchRamp(**ramp),
        "contexts": contexts and dict(contexts),
    }
