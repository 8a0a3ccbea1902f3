"""A corpus from its configuration: which stages there are, in which order, and what each depends on."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from data_prep import (
    card,
    document,
    pair_sources,  # noqa: F401 - it and those below have sources that configurations name
    python_sources,  # noqa: F401
    table_sources,  # noqa: F401
    web_sources,  # noqa: F401
)
from data_prep.collect import collecting
from data_prep.cutting import whole_id
from data_prep.decontaminate import DecontaminateConfig, decontaminating
from data_prep.decontaminate import report as print_contamination
from data_prep.dedup import DedupConfig, deduplicating
from data_prep.dedup import report as print_threshold
from data_prep.document import DocumentFile
from data_prep.fertility import report as print_fertility
from data_prep.files import InputError
from data_prep.filtering.classifier import Classifier, train
from data_prep.filtering.stage import FilterConfig, filtering, require_some
from data_prep.mix import MixConfig, mix
from data_prep.mix import report as print_mixture
from data_prep.shards import SPLITS, Manifest
from data_prep.slurm.settings import SlurmConfig
from data_prep.sources import Source
from data_prep.split import SplitConfig, dividing
from data_prep.stages import Finished, Stage, exclusive, perform
from data_prep.tokenization import TokenizerConfig, make_tokenizer, tokenizing
from data_prep.units import at_once
from data_prep.workers import UnitsFailed
from data_prep.workers import workers as running


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


@dataclass(frozen=True)
class Prepared:
    """What a run has brought up to date."""

    stages: dict[str, Finished]
    peak_bytes: int
    """The most memory that one of its processes has held, where they did any work."""


def run(config: DataConfig, last: str, console: Console) -> Prepared:
    """Bring all stages up to and including those of the verb `last` up to date.

    Raises:
        UnitsFailed: units of a verb could not be done; all others of this verb are.
    """
    output = Path(config.output)
    failed: list[tuple[str, UnitsFailed]] = []
    with exclusive(output), running(config.workers) as workers:

        def bring(verb: str, number: int, stage: Stage) -> Finished | None:
            try:
                return perform(stage, output, workers, console)
            except UnitsFailed as error:
                failed.append((verb, error))
                return None

        done = reach(config, last, bring)
        if failed:
            raise together(failed)
        report(last, done, console)
        if "tokens" in done:
            card.write(output, [described(name, source) for name, source in config.sources.items()], done)
        return Prepared(done, workers.peak)


def together(failed: list[tuple[str, UnitsFailed]]) -> UnitsFailed:
    """What failed in several stages of a verb as one error."""
    [verb, first] = failed[0]
    return first if len(failed) == 1 else UnitsFailed(verb, [each for _, error in failed for each in error.failures])


class NotReached(KeyError):
    """A stage was asked for another one that is not finished."""


class Reached(dict[str, Finished]):
    """Finished stages by name."""

    def __missing__(self, name: str) -> Finished:
        raise NotReached(name)


def reach(config: DataConfig, last: str, bring: Callable[[str, int, Stage], Finished | None]) -> dict[str, Finished]:
    """Go through the stages up to the verb `last`, and through all of a verb before the next; returns those that are finished.

    Args:
        bring: Given a verb, the number of one of its stages and the stage, brings it up to date; None where it cannot.
            Then the verbs after this one are left.
    """
    done = Reached()
    for verb, stages in STAGES.items():
        whole = True
        try:
            for number, stage in enumerate(stages(config, done)):
                finished = bring(verb, number, stage)
                if finished is None:
                    whole = False
                else:
                    done[stage.name] = finished
        except NotReached:
            # Of the stages of a verb, some may need another that could not be finished.
            if whole:
                raise
        if not whole or verb == last:
            break
    return done


def report(verb: str, done: dict[str, Finished], console: Console) -> None:
    """What the verb that was asked for says beyond its stage's line."""
    if verb == "tokenizer":
        print_fertility(done["tokenizer"].record, console)
    if verb == "dedup":
        print_threshold(done["unique"].record, console)
    if verb == "mix" and "mixture" in done:
        print_mixture(done["mixture"].record, console)
    if verb == "decontaminate" and "decontaminated" in done:
        print_contamination(done["decontaminated"].record, console)
    elif verb == "decontaminate":
        console.print(
            "decontaminate: nothing to do, the configuration names no test set (decontaminate.files or .tasks)"
        )


def collect_stages(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    stages = []
    for name, source in config.sources.items():
        work = partial(collecting, name, source)
        columns = ("documents", "text_bytes", *source.counts)
        settings = source_settings(source)
        stages.append(Stage(f"documents/{name}", 2, settings, source.inputs(), work, columns=columns))
    return stages


def document_files(finished: Finished, source: str, within: str = "") -> list[DocumentFile]:
    """The documents of one source that a stage has written, or those in a folder of it."""
    paths = document.files(finished.folder / within, source)
    return [DocumentFile(path, finished.digest(path)) for path in paths]


def source_settings(source: Source) -> dict[str, Any]:
    return {"kind": type(source).__name__, **source.settings()}


def described(name: str, source: Source) -> dict[str, Any]:
    """A source for the manifest and the card: what it is called, is, and is set to."""
    return {"name": name, "kind": type(source).__name__, "settings": source.settings()}


def filter_stages(config: DataConfig, done: dict[str, Finished]) -> Iterator[Stage]:
    if config.filter.classifier:
        yield classifier_stage(config, config.filter.classifier, done)
    # Not before it is finished: it is asked for the stages after it only then.
    for name in filter(config.filter.of, config.sources):
        collected = done[f"documents/{name}"]
        scores, trained, inputs = None, None, [collected.output]
        if config.filter.classifies(name):
            scores, trained = done["classifier"].folder / "classifier.npy", done["classifier"].output
            inputs.append(trained)
        work = partial(filtering, document_files(collected, name), name, config.filter, scores, trained)
        columns = ("documents", "text_bytes", "dropped")
        yield Stage(f"filtered/{name}", 2, config.filter.settings(), inputs, work, columns=columns)


def classifier_stage(config: DataConfig, settings: Classifier, done: dict[str, Finished]) -> Stage:
    collected = {name: done[f"documents/{name}"] for name in config.sources}
    reference = {name: collected[name].folder for name in settings.reference}
    raw = {name: finished.folder for name, finished in collected.items() if config.filter.classifies(name)}
    sizes = {name: finished.record["documents"] for name, finished in collected.items()}
    inputs = [[name, collected[name].output] for names in (reference, raw) for name in names]
    work = partial(train, settings, reference, raw, sizes)
    columns = ("reference_documents", "raw_documents", "held_out", "right")
    return Stage("classifier", 1, [asdict(settings), list(reference)], inputs, partial(at_once, work), columns=columns)


def dedup_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    if all(map(config.filter.of, config.sources)):
        require_some({name: done[f"filtered/{name}"].record for name in config.sources})
    collected = {name: done.get(f"filtered/{name}", done[f"documents/{name}"]) for name in config.sources}
    files = {name: document_files(finished, name) for name, finished in collected.items()}
    inputs = [[name, finished.output] for name, finished in collected.items()]
    work = partial(deduplicating, files, config.dedup)
    return [Stage("unique", 2, config.dedup.settings(), inputs, work, columns=config.dedup.columns)]


def decontaminate_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    if not config.decontaminate.wanted:
        return []
    unique = done["unique"]
    files = {name: document_files(unique, name) for name in config.sources}
    inputs = [unique.output, config.decontaminate.inputs()]
    columns = ("documents", "text_bytes", "contaminated", "dropped", "removed_passages")
    work = partial(decontaminating, files, config.decontaminate)
    return [Stage("decontaminated", 2, asdict(config.decontaminate), inputs, work, columns=columns)]


def split_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    clean = done.get("decontaminated", done["unique"])
    fixed = {name: source.split for name, source in config.sources.items()}
    settings = {**asdict(config.split), "sources": fixed}
    columns = ("train", "validation", "test")
    document_of = whole_id if "decontaminated" in done else str
    files = {name: document_files(clean, name) for name in config.sources}
    work = partial(dividing, files, fixed, config.split, document_of)
    return [Stage("split", 2, settings, clean.output, work, columns=columns)]


def tokenizer_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    divided = done["split"]
    settings: Any = config.tokenizer.settings()
    inputs = divided.output
    if config.tokenizer.path is not None:
        settings, inputs = {}, config.tokenizer.existing()[0].fingerprint
    size = divided.record["totals"]["train"]["text_bytes"]
    work = partial(make_tokenizer, config.tokenizer, divided.folder, list(config.sources), size)
    return [Stage("tokenizer", 1, settings, inputs, partial(at_once, work), columns=("vocab_size",))]


def tokenize_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    divided, trained = done["split"], done["tokenizer"]
    sources = []
    for name, source in config.sources.items():
        record = done[f"documents/{name}"].record
        sources.append({**described(name, source), **record})

    inputs = {"split": divided.output, "tokenizer": trained.output, "sources": sources}
    pairs = any(source.pairs for source in config.sources.values())
    files = {split: {name: document_files(divided, name, split) for name in config.sources} for split in SPLITS}
    work = partial(tokenizing, trained.folder, files, sources, pairs, config.shards.tokens)
    return [
        Stage(
            "tokens",
            2,
            asdict(config.shards),
            inputs,
            work,
            columns=("documents", "text_bytes", "tokens"),
        )
    ]


def mix_stage(config: DataConfig, done: dict[str, Finished]) -> list[Stage]:
    if not config.mix.wanted:
        return []
    tokens = done["tokens"]
    sizes = dict.fromkeys(config.sources, 0)
    for shard in Manifest.load(tokens.folder).splits["train"]:
        sizes[shard.source] += shard.tokens
    settings = {**asdict(config.mix), "path": str(tokens.folder)}
    work = partial(mix, config.mix, sizes, str(tokens.folder))
    return [Stage("mixture", 1, settings, tokens.output, partial(at_once, work), columns=("planned_tokens",))]


def mapped_phases(config: DataConfig) -> dict[str, list[list[str]]]:
    """The phases of each verb that are of many units; between two lists of them something is done in one piece.

    It is a plan alone: who works goes by what the stages yield.
    """
    near = [["bands", "pairs"]]
    if config.dedup.minhash.verify:
        near += [["sets", "similar"], ["other-pairs", "other-similar"]]
    return {
        "collect": [["documents"]],
        "filter": [["filter"]] if any(map(config.filter.of, config.sources)) else [],
        "dedup": [["digests", "equal"], *(near if config.dedup.fuzzy else []), ["documents"]],
        "decontaminate": [["hits"], ["cut"]] if config.decontaminate.wanted else [],
        "split": [["split"]],
        "tokenizer": [],
        "tokenize": [["encode"]],
        "mix": [],
    }


# What each verb brings up to date, after the verbs above it.
STAGES = {
    "collect": collect_stages,
    "filter": filter_stages,
    "dedup": dedup_stage,
    "decontaminate": decontaminate_stage,
    "split": split_stage,
    "tokenizer": tokenizer_stage,
    "tokenize": tokenize_stage,
    "mix": mix_stage,
}
