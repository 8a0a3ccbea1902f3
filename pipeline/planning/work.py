"""How much a run trains: batches, steps, tokens, and how often it reads each part of its corpus; from the manifest alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.files import InputError
from data_prep.shards import Manifest
from pipeline.batch_schedule import BatchSchedule, last_within
from pipeline.mixture import Mixture
from pipeline.mixture_parts import mixture_weights
from pipeline.order import StreamOrder
from pipeline.planning.settings import DataSettings


@dataclass(frozen=True)
class Work:
    """What a run is to do. None: it cannot be known before the shards are there."""

    context: int
    batch_tokens: int
    micro_batch: int
    steps: int | None
    tokens: int | None
    samples: int | None
    epochs: dict[str, float] | None
    """Of each part of the mixture, or of `train`, by name."""
    train_tokens: int | None
    """That there are to train on."""
    shard_bytes: int | None
    vocab_size: int | None
    manifest: Path | None
    notes: tuple[str, ...] = ()
    divisor: int = 0
    """Sequences that every global batch is a multiple of."""

    def micro_batches(self, ranks: int) -> int:
        """Of one rank in a step, when a ramp is over."""
        return max(1, self.batch_tokens // self.context // (self.micro_batch * ranks))


class Corpus:
    """What the manifests say of what there is to train on."""

    def __init__(self, data: DataSettings, folder: Path):
        self.whole = Manifest.load(folder)
        self.parts, self.weights = {"train": self.whole}, {"train": 1}
        if data.mixture:
            mixture = dict(sorted(data.mixture.items()))
            self.weights = mixture_weights({name: part.weight for name, part in mixture.items()})
            self.parts = {name: part.manifest(name, folder) for name, part in mixture.items()}
        self.tokens = {name: manifest.tokens("train") for name, manifest in self.parts.items()}

    @property
    def bytes(self) -> int:
        """Of all shards of all splits."""
        size = np.dtype(self.whole.dtype).itemsize
        folders = {manifest.folder: manifest for manifest in (self.whole, *self.parts.values())}
        counted = [Manifest.load(folder) for folder in folders]
        # An index has 12 bytes a sequence and 8 a document.
        return sum(
            shard.tokens * size + shard.documents * (12 * manifest.sequences_per_document + 8)
            for manifest in counted
            for shards in manifest.splits.values()
            for shard in shards
        )


def work_of(data: DataSettings, *, model_context: int | None, ranks: int, sequences: int) -> Work:
    """The work that the section `data` describes.

    Args:
        model_context: what stands for data.context where that is not given.
        ranks: processes that share a batch.
        sequences: of a micro-batch, where neither that nor a batch is given.

    Raises:
        InputError: sizes that do not go together, or a manifest that is not as it should be.
    """
    notes = []
    context = data.context or model_context or 1024
    micro_batch = data.micro_batch or sequences
    batch_tokens = data.batch_tokens or context * micro_batch * ranks
    for name, value, assumed in (
        ("context", data.context, f"{context} tokens, as the model has them"),
        ("micro_batch", data.micro_batch, str(micro_batch)),
        ("batch_tokens", data.batch_tokens, f"{batch_tokens:,}, one micro-batch of each rank"),
    ):
        if value is None:
            notes.append(f"data.{name} is not given; reckoned with {assumed}")
    try:
        batches = BatchSchedule(batch_tokens, context, ramp=data.batch_ramp, contexts=data.context_schedule or None)
        if batch_tokens % context:
            raise ValueError(f"data.batch_tokens {batch_tokens} is not a whole number of sequences of {context} tokens")
    except ValueError as error:
        raise InputError(str(error)) from error
    corpus = None
    if data.path is None:
        notes.append("data.path is not given, so epochs are left out")
    elif not (Path(data.path) / "manifest.json").is_file() and not Path(data.path).is_file():
        notes.append(f"there is no manifest in {data.path} yet, so epochs are left out")
    else:
        corpus = Corpus(data, Path(data.path))
    epoch, mean_tokens = None, float(context)
    if corpus is not None:
        epoch, mean_tokens, note = samples_of(data, corpus, context, batch_tokens // context)
        notes += [note] if note else []
    steps, tokens_at = steps_of(data, batches, epoch, mean_tokens)
    if steps is None:
        notes.append(
            "the length of the run is not known: data.total_tokens is not given"
            + (", and data.total_epochs needs the manifest" if data.total_epochs else "")
        )
    elif steps < 1:
        raise InputError("The run would end before its first step: raise data.total_tokens or lower data.batch_tokens")
    epochs = None
    if corpus is not None and steps is not None:
        epochs = epochs_of(data, corpus, batches, batches.position_at(steps), epoch or 1)
    return Work(
        context, batch_tokens, micro_batch, steps, None if steps is None else tokens_at(steps),
        None if steps is None else batches.position_at(steps), epochs,
        corpus and sum(corpus.tokens.values()), corpus and corpus.bytes, corpus and corpus.whole.vocab_size,
        corpus and corpus.whole.folder, tuple(notes), batches.divisor(0) // context,
    )  # fmt: skip


def samples_of(data: DataSettings, corpus: Corpus, context: int, sequences: int) -> tuple[int, float, str | None]:
    """Samples of an epoch, tokens of one that count, and what is to be said of them."""
    if data.order == "stream":
        return StreamOrder(sum(corpus.tokens.values()), sequences, context).steps * sequences, float(context), None
    if data.order == "shuffled":
        return sum((tokens - 1) // context for tokens in corpus.tokens.values()), float(context), None
    try:
        lengths = corpus.whole.open("train").pair_lengths()
        kept = lengths[lengths.max(1) <= context]
        return len(kept), float(kept[:, 0 if data.labels else 1].mean()) if len(kept) else 0.0, None
    except (InputError, OSError):
        documents = sum(shard.documents for shard in corpus.whole.shards("train"))
        mean = sum(corpus.tokens.values()) / (2 * max(1, documents))
        return (
            documents,
            mean,
            "the shards' indices are not here, so pairs are taken to have targets as long as sources",
        )


def steps_of(data: DataSettings, batches: BatchSchedule, epoch: int | None, mean_tokens: float):
    def tokens_at(step: int) -> int:
        return round(batches.position_at(step) * mean_tokens) if data.order == "pairs" else batches.tokens_at(step)

    steps = None
    if data.total_tokens is not None and (data.order != "pairs" or epoch is not None):
        steps = last_within(data.total_tokens, tokens_at)
    elif data.total_epochs is not None and epoch is not None:
        steps = last_within(data.total_epochs * epoch, batches.position_at)
    return steps, tokens_at


def epochs_of(
    data: DataSettings, corpus: Corpus, batches: BatchSchedule, position: int, epoch: int
) -> dict[str, float]:
    """How often each part is read through."""
    if data.order != "shuffled":
        return {"train": position / epoch}
    mixture, phases = Mixture([*corpus.weights.values()]), batches.phases
    passed = np.zeros(len(corpus.parts))
    ends = [*(phase.position for phase in phases[1:]), position]
    for phase, end in zip(phases, ends, strict=True):
        windows = [(tokens - 1) // phase.context for tokens in corpus.tokens.values()]
        passed += mixture.counts(max(0, min(end, position) - phase.position)) / np.maximum(windows, 1)
    return dict(zip(corpus.parts, passed.tolist(), strict=True))
