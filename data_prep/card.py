"""A corpus's data card: what every stage took in and let through, why, and what made it, as JSON and as one HTML page.

It is made of the stages' own records and of the shards' indices, so it says nothing that is not on disk, and says the same
wherever the corpus lies. Of tokens it reads a bounded sample.
"""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data_prep import svg
from data_prep.corpus import open_corpus
from data_prep.files import InputError, read_json, write_json, write_text
from data_prep.inspection_page import Frequencies, length_plot
from data_prep.pages import page
from data_prep.stages import MARKER, Finished
from data_prep.statistics import PERCENTILES, Count, Lengths, counts, document_lengths, token_counts

FORMAT = 2
# What decides on bytes: readers, filters, hashes, tokenizers.
PACKAGES = (
    "pyarrow",
    "polars",
    "numpy",
    "tokenizers",
    "gigatoken",
    "rensa",
    "trafilatura",
    "ftfy",
    "py3langid",
    "regex",
    "datasets",
    "warcio",
)
NO_REASONS = ("c4_lines", "changed")
"""Counts of a filter's record that are no dropped documents."""
PAGE, DATA = "card.html", "card.json"
SAMPLED_TOKENS = 2**24
"""Of a larger split, about so many tokens are counted."""


@dataclass(frozen=True)
class Step:
    """What one stage let through, by source."""

    name: str
    documents: dict[str, int]
    text_bytes: dict[str, int]

    @property
    def totals(self) -> dict[str, int]:
        return {"documents": sum(self.documents.values()), "text_bytes": sum(self.text_bytes.values())}


def write(output: Path, sources: list[dict[str, Any]], done: dict[str, Finished]) -> None:
    """Write `card.json` and `card.html` of a finished corpus; files that say the same already are left alone.

    Args:
        sources: name, kind and settings of each.
        done: the stages by name.
    """
    content = describe(sources, done)
    content["shards"] = shard_statistics(done["tokens"].folder, earlier(output / DATA, content["fingerprint"]))
    text = render(content)
    if not (output / PAGE).is_file() or (output / PAGE).read_text(encoding="utf-8") != text:
        write_json(output / DATA, content)
        write_text(output / PAGE, text)


def earlier(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """What the card that is there says of the same shards; None where there is none, or another one."""
    try:
        card = read_json(file)
        return card["shards"] if (card["format"], card["fingerprint"]) == (FORMAT, fingerprint) else None
    except (OSError, InputError, KeyError, TypeError):
        return None


def shard_statistics(folder: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    """Counts by split and source, lengths of documents and frequencies of tokens, in JSON's types.

    Args:
        known: what an earlier card says of these shards, which is then taken as it is.
    """
    if known is not None:
        return known
    manifest, tokenizer = open_corpus(folder)
    split = next(split for split, shards in manifest.splits.items() if shards)
    frequencies = Frequencies.of_counts(
        token_counts(manifest, split, SAMPLED_TOKENS), manifest.tokens(split), tokenizer
    )
    lengths = [{**asdict(one), "bins": one.bins.tolist()} for one in document_lengths(manifest, split)]
    return {
        "kind": "pairs" if manifest.pairs else "documents",
        "counts": [asdict(count) for count in counts(manifest)],
        "split": split,
        "lengths": lengths,
        "frequencies": asdict(frequencies),
    }


def trail(name: str, done: dict[str, Finished]) -> list[str]:
    """The stages that a source's documents went through, by their names."""
    stages = (f"documents/{name}", f"filtered/{name}", "unique", "decontaminated", "split", "tokens")
    return [stage for stage in stages if stage in done]


def stage_settings(stage: Finished) -> Any:
    """What a stage was set to, as its own folder has it."""
    return read_json(stage.folder / MARKER)["settings"]


def describe(sources: list[dict[str, Any]], done: dict[str, Finished]) -> dict[str, Any]:
    """The card's content, in JSON's types."""
    names = [source["name"] for source in sources]
    tokenizer, tokens = done["tokenizer"].record, done["tokens"].record
    decontaminated = done["decontaminated"].record if "decontaminated" in done else None
    unique = done["unique"].record
    return {
        "format": FORMAT,
        "fingerprint": tokens["fingerprint"],
        "sources": [{**source, "stages": trail(source["name"], done)} for source in sources],
        "funnel": [
            {"stage": step.name, **step.totals, "sources": {"documents": step.documents, "text_bytes": step.text_bytes}}
            for step in funnel(names, done)
        ],
        "dropped": dropped(names, done),
        "duplicates": {
            name: {key: record.get(key, 0) for key in ("exact", "near")} | {"of": record.get("duplicate_of", {})}
            for name, record in unique["sources"].items()
        },
        "contamination": decontaminated and {
            key: decontaminated[key] for key in ("contaminated", "dropped", "removed_passages", "removed_characters", "test_sets")
        },
        "splits": done["split"].record["totals"],
        "tokenizer": {key: tokenizer[key] for key in ("vocab_size", "fingerprint", "fertility") if key in tokenizer},
        "tokens": tokens["tokens"],
        "mixture": done["mixture"].record if "mixture" in done else None,
        # That of the mixture depends on where the shards lie.
        "stages": {
            name: {"fingerprint": stage.fingerprint, "output": stage.output, "settings": stage_settings(stage)}
            for name, stage in done.items() if name != "mixture"
        },
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def funnel(names: list[str], done: dict[str, Finished]) -> list[Step]:
    """The stages that let documents through, in their order."""
    collected = {name: done[f"documents/{name}"].record for name in names}
    steps = [("collected", collected)]
    if any(f"filtered/{name}" in done for name in names):
        # A source without filters goes on as it came.
        steps.append(
            ("filtered", {n: done[f"filtered/{n}"].record if f"filtered/{n}" in done else collected[n] for n in names})
        )
    steps.append(("unique", done["unique"].record["sources"]))
    if "decontaminated" in done:
        steps.append(("clean of test sets", done["decontaminated"].record["sources"]))
    return [
        Step(title, *({name: records[name][key] for name in names} for key in ("documents", "text_bytes")))
        for title, records in steps
    ]


def dropped(names: list[str], done: dict[str, Finished]) -> list[dict[str, Any]]:
    """How many documents of a source broke which rule of which filter, the most frequent first."""
    rows = [
        {"source": name, "filter": filtered, "reason": reason, "documents": count}
        for name in names
        if f"filtered/{name}" in done
        for filtered, reasons in done[f"filtered/{name}"].record["reasons"].items()
        if filtered not in NO_REASONS
        for reason, count in reasons.items()
        if count
    ]
    return sorted(rows, key=lambda row: (-row["documents"], row["source"], row["filter"], row["reason"]))


def render(content: dict[str, Any]) -> str:
    """The page of a card's content."""
    names = [source["name"] for source in content["sources"]]
    stages = [step["stage"] for step in content["funnel"]]
    plots = {
        unit: Markup(svg.columns(stages, [[step["sources"][key][name] / size for step in content["funnel"]] for name in names], names, "stage", unit))
        for unit, key, size in (("documents", "documents", 1), ("MB", "text_bytes", 1e6))
    }  # fmt: skip
    shards = content["shards"]
    lengths = [Lengths(**{**one, "bins": np.array(one["bins"])}) for one in shards["lengths"]]
    return page(
        "card.html",
        card=content,
        names=names,
        plots=plots,
        settings={
            name: json.dumps(stage["settings"], indent=2, ensure_ascii=False)
            for name, stage in content["stages"].items()
            if stage["settings"]
        },
        kind=shards["kind"],
        split=shards["split"],
        counts=[Count(**count) for count in shards["counts"]],
        lengths=lengths,
        percentiles=PERCENTILES,
        length_plot=length_plot(lengths, shards["kind"]),
        frequencies=Frequencies(**shards["frequencies"]),
    )
