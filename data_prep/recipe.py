"""A corpus from its configuration: which stages there are, in which order, and what each depends on."""

import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep import pair_sources, python_sources  # noqa: F401  (their sources are named in configurations)
from data_prep.collect import collect
from data_prep.dedup import deduplicate
from data_prep.files import InputError
from data_prep.sources import Source
from data_prep.split import SplitConfig, divide
from data_prep.stages import Finished, Stage, exclusive, perform
from data_prep.tokenization import TokenizerConfig, make_tokenizer, tokenize
from data_prep.tokenizer import Tokenizer


@dataclass(frozen=True)
class ShardConfig:
    """How tokens are laid out on disk."""

    tokens: int = 100_000_000
    """A shard is closed before it would hold more tokens than this."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"shards.tokens is {self.tokens}: a shard holds at least one token.")


@dataclass(frozen=True)
class DataConfig:
    """Everything that makes a corpus what it is."""

    output: str
    """Folder for all stages; the shards go to its folder `tokens`."""
    sources: dict[str, Source]
    """Name and settings of each source. Of equal documents, that of the earlier source is kept."""
    split: SplitConfig = field(default_factory=SplitConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)
    workers: int = 0
    """Processes that read sources; 0 for one a core. The result does not depend on it."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("`sources` is empty: name at least one source.")
        for name in self.sources:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise InputError(f"Source name {name!r} cannot name files: use letters, digits, - and _.")
        pairs = [name for name, source in self.sources.items() if source.pairs]
        plain = [name for name in self.sources if name not in pairs]
        if pairs and plain:
            raise InputError(
                f"Source {pairs[0]!r} gives pairs and source {plain[0]!r} gives plain text: "
                "a corpus is of one kind, so make two of them."
            )


def run(config: DataConfig, last: str, console: Console) -> None:
    """Bring all stages up to and including those of the verb `last` up to date."""
    output = Path(config.output)
    with exclusive(output):
        done: dict[str, Finished] = {}
        for verb, stages in STAGES.items():
            for stage in stages(config, done):
                done[stage.name] = perform(stage, output, console)
            if verb == last:
                return


def collect_stages(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    workers = config.workers or os.cpu_count() or 1
    stages = []
    for name, source in config.sources.items():
        work = partial(collect, name, source, workers)
        columns = ("documents", "text_bytes", *source.counts)
        settings = source_settings(source)
        stages.append(Stage(f"documents/{name}", 1, settings, source.inputs(), work, columns=columns))
    return stages


def source_settings(source: Source) -> dict[str, Any]:
    return {"kind": type(source).__name__, **source.settings()}


def dedup_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    collected = {name: done[f"documents/{name}"] for name in config.sources}
    folders = {name: finished.folder for name, finished in collected.items()}
    inputs = [[name, finished.output] for name, finished in collected.items()]
    columns = ("documents", "text_bytes", "duplicates")
    return [Stage("unique", 1, {}, inputs, partial(deduplicate, folders), columns=columns)]


def split_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    unique = done["unique"]
    fixed = {name: source.split for name, source in config.sources.items()}
    settings = {**asdict(config.split), "sources": fixed}
    columns = ("train", "validation", "test")
    work = partial(divide, unique.folder, fixed, config.split)
    return [Stage("split", 1, settings, unique.output, work, columns=columns)]


def tokenizer_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    divided = done["split"]
    settings: Any = asdict(config.tokenizer)
    inputs = divided.output
    if config.tokenizer.path is not None:
        settings, inputs = {}, Tokenizer.load(config.tokenizer.path).fingerprint
    size = divided.record["totals"]["train"]["text_bytes"]
    work = partial(make_tokenizer, config.tokenizer, divided.folder, list(config.sources), size)
    return [Stage("tokenizer", 1, settings, inputs, work, columns=("vocab_size",))]


def tokenize_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    divided, trained = done["split"], done["tokenizer"]
    sources = []
    for name, source in config.sources.items():
        record = done[f"documents/{name}"].record
        settings = source_settings(source)
        sources.append({"name": name, "kind": settings.pop("kind"), "settings": settings, **record})

    inputs = {"split": divided.output, "tokenizer": trained.output, "sources": sources}
    pairs = any(source.pairs for source in config.sources.values())
    work = partial(tokenize, trained.folder, divided.folder, sources, pairs, config.shards.tokens)
    return [Stage("tokens", 1, asdict(config.shards), inputs, work, columns=("documents", "text_bytes", "tokens"))]


# What each verb brings up to date, after the verbs above it.
STAGES = {
    "collect": collect_stages,
    "dedup": dedup_stage,
    "split": split_stage,
    "tokenizer": tokenizer_stage,
    "tokenize": tokenize_stage,
}
