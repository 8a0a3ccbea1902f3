"""The configuration of a corpus, and what in it does not go together."""

from dataclasses import dataclass, field
from typing import Literal

from data_prep import (
    pair_sources,  # noqa: F401 - it and those below have sources that configurations name
    python_sources,  # noqa: F401
    table_sources,  # noqa: F401
    web_sources,  # noqa: F401
)
from data_prep.decontaminate import DecontaminateConfig
from data_prep.dedup import DedupConfig
from data_prep.files import InputError
from data_prep.filtering.stage import FilterConfig
from data_prep.mix import MixConfig
from data_prep.slurm.settings import SlurmConfig
from data_prep.sources import Source
from data_prep.split import SplitConfig
from data_prep.tokenization import TokenizerConfig


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
    filter: FilterConfig = field(default_factory=FilterConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    shards: ShardConfig = field(default_factory=ShardConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    workers: int = 0
    """Processes that do the work; 0 for one a core. The result does not depend on it."""
    executor: Literal["local", "slurm"] = "local"
    """Do the work on this machine, or submit each stage as an array of jobs to a Slurm cluster and return. Both make the same
    bytes and go on from what the other has finished."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"workers is {self.workers}: give a number of processes, or 0 for one a core.")
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
        for name in self.mix.given:
            if name not in self.sources:
                raise InputError(f"mix names the source {name!r}: the sources are {', '.join(self.sources)}.")
        reference = self.filter.classifier.reference if self.filter.classifier else ()
        for option, names in (("sources", self.filter.sources or ()), ("classifier.reference", reference)):
            for name in names:
                if name not in self.sources:
                    raise InputError(f"filter.{option} names {name!r}: the sources are {', '.join(self.sources)}.")
        for name in pairs:
            if self.filter.of(name):
                raise InputError(f"Source {name!r} gives pairs: `filter` is for plain text, so leave it out.")
