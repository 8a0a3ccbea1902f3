"""Which stages make a corpus of a configuration, in which order, and what each depends on."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from data_prep import document
from data_prep.collect import collecting
from data_prep.configuration import DataConfig
from data_prep.cutting import whole_id
from data_prep.decontaminate import decontaminating
from data_prep.dedup import deduplicating
from data_prep.document import DocumentFile
from data_prep.filtering.classifier import Classifier, train
from data_prep.filtering.stage import filtering, require_some
from data_prep.mix import mix
from data_prep.shards import SPLITS, Manifest
from data_prep.sources import Source
from data_prep.split import dividing
from data_prep.stages import Finished, Stage
from data_prep.tokenization import make_tokenizer, tokenizing
from data_prep.units import at_once

Rounds = Iterator[Sequence[Stage]]
"""Stages that know nothing of each other, and after these are finished, more; none where there is nothing to do."""


def collect_stages(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    stages = []
    for name, source in config.sources.items():
        work = partial(collecting, name, source)
        columns = ("documents", "text_bytes", *source.counts)
        settings = source_settings(source)
        stages.append(Stage(f"documents/{name}", 2, settings, source.inputs(), work, columns=columns))
    yield stages


def document_files(finished: Finished, source: str, within: str = "") -> list[DocumentFile]:
    """The documents of one source that a stage has written, or those in a folder of it."""
    paths = document.files(finished.folder / within, source)
    return [DocumentFile(path, finished.digest(path)) for path in paths]


def source_settings(source: Source) -> dict[str, Any]:
    return {"kind": type(source).__name__, **source.settings()}


def described(name: str, source: Source) -> dict[str, Any]:
    """A source for the manifest and the card: what it is called, is, and is set to."""
    return {"name": name, "kind": type(source).__name__, "settings": source.settings()}


def filter_stages(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    names = [name for name in config.sources if config.filter.of(name)]
    classified = [name for name in names if config.filter.classifies(name)]
    first = [filter_stage(config, name, done) for name in names if name not in classified]
    if config.filter.classifier:
        first.append(classifier_stage(config, config.filter.classifier, done))
    yield first
    yield [filter_stage(config, name, done) for name in classified]


def filter_stage(config: DataConfig, name: str, done: dict[str, Finished]) -> Stage:
    collected = done[f"documents/{name}"]
    scores, trained, inputs = None, None, [collected.output]
    if config.filter.classifies(name):
        scores, trained = done["classifier"].folder / "classifier.npy", done["classifier"].output
        inputs.append(trained)
    work = partial(filtering, document_files(collected, name), name, config.filter, scores, trained)
    columns = ("documents", "text_bytes", "dropped")
    return Stage(f"filtered/{name}", 2, config.filter.settings(), inputs, work, columns=columns)


def classifier_stage(config: DataConfig, settings: Classifier, done: dict[str, Finished]) -> Stage:
    collected = {name: done[f"documents/{name}"] for name in config.sources}
    reference = {name: collected[name].folder for name in settings.reference}
    raw = {name: finished.folder for name, finished in collected.items() if config.filter.classifies(name)}
    sizes = {name: finished.record["documents"] for name, finished in collected.items()}
    inputs = [[name, collected[name].output] for names in (reference, raw) for name in names]
    work = partial(train, settings, reference, raw, sizes)
    columns = ("reference_documents", "raw_documents", "held_out", "right")
    return Stage("classifier", 1, [asdict(settings), list(reference)], inputs, partial(at_once, work), columns=columns)


def dedup_stage(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    if all(map(config.filter.of, config.sources)):
        require_some({name: done[f"filtered/{name}"].record for name in config.sources})
    collected = {name: done.get(f"filtered/{name}", done[f"documents/{name}"]) for name in config.sources}
    files = {name: document_files(finished, name) for name, finished in collected.items()}
    inputs = [[name, finished.output] for name, finished in collected.items()]
    work = partial(deduplicating, files, config.dedup)
    yield [Stage("unique", 2, config.dedup.settings(), inputs, work, columns=config.dedup.columns)]


def decontaminate_stage(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    if not config.decontaminate.wanted:
        return
    unique = done["unique"]
    files = {name: document_files(unique, name) for name in config.sources}
    inputs = [unique.output, config.decontaminate.inputs()]
    columns = ("documents", "text_bytes", "contaminated", "dropped", "removed_passages")
    work = partial(decontaminating, files, config.decontaminate)
    yield [Stage("decontaminated", 2, asdict(config.decontaminate), inputs, work, columns=columns)]


def split_stage(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    clean = done.get("decontaminated", done["unique"])
    fixed = {name: source.split for name, source in config.sources.items()}
    settings = {**asdict(config.split), "sources": fixed}
    columns = ("train", "validation", "test")
    document_of = whole_id if "decontaminated" in done else str
    files = {name: document_files(clean, name) for name in config.sources}
    work = partial(dividing, files, fixed, config.split, document_of)
    yield [Stage("split", 2, settings, clean.output, work, columns=columns)]


def tokenizer_stage(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    divided = done["split"]
    settings: Any = config.tokenizer.settings()
    inputs = divided.output
    if config.tokenizer.path is not None:
        settings, inputs = {}, config.tokenizer.existing()[0].fingerprint
    size = divided.record["totals"]["train"]["text_bytes"]
    work = partial(make_tokenizer, config.tokenizer, divided.folder, list(config.sources), size)
    yield [Stage("tokenizer", 1, settings, inputs, partial(at_once, work), columns=("vocab_size",))]


def tokenize_stage(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    divided, trained = done["split"], done["tokenizer"]
    sources = []
    for name, source in config.sources.items():
        record = done[f"documents/{name}"].record
        sources.append({**described(name, source), **record})

    inputs = {"split": divided.output, "tokenizer": trained.output, "sources": sources}
    pairs = any(source.pairs for source in config.sources.values())
    files = {split: {name: document_files(divided, name, split) for name in config.sources} for split in SPLITS}
    work = partial(
        tokenizing, trained.folder, trained.record["fingerprint"], files, sources, pairs, config.shards.tokens
    )
    yield [
        Stage(
            "tokens",
            2,
            asdict(config.shards),
            inputs,
            work,
            columns=("documents", "text_bytes", "tokens"),
        )
    ]


def mix_stage(config: DataConfig, done: dict[str, Finished]) -> Rounds:
    if not config.mix.wanted:
        return
    tokens = done["tokens"]
    sizes = dict.fromkeys(config.sources, 0)
    for shard in Manifest.load(tokens.folder).splits["train"]:
        sizes[shard.source] += shard.tokens
    settings = {**asdict(config.mix), "path": str(tokens.folder)}
    work = partial(mix, config.mix, sizes, str(tokens.folder))
    yield [Stage("mixture", 1, settings, tokens.output, partial(at_once, work), columns=("planned_tokens",))]


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
