"""What each number of the report rests on: sources, tokenizer, shards, run, checkpoint and results, by their fingerprints."""

from dataclasses import dataclass
from typing import Any

from pipeline.reporting.figures.figure import colour
from pipeline.reporting.quantities import SPACE, and_list, digits, si
from pipeline.reporting.records import dig, number
from pipeline.reporting.runs import Run


@dataclass(frozen=True)
class Card:
    """One link of the lineage: a thing on disk, facts about it, and its fingerprint."""

    kind: str
    title: str
    facts: list[str]
    fingerprint: str | None
    details: list[tuple[str, str]]
    colour: str = ""


@dataclass(frozen=True)
class Corpus:
    """The runs that share one set of shards: what the shards were made from, and what was made from them."""

    origin: list[list[Card]]
    chains: list[list[Card]]


def corpora(runs: list[Run]) -> list[Corpus]:
    groups: dict[Any, list[tuple[int, Run]]] = {}
    for position, run in enumerate(runs):
        groups.setdefault(str(run.get("data", "fingerprint")), []).append((position, run))
    return [
        Corpus(origin(members[0][1]), [chain(run, colour(position)) for position, run in members])
        for members in groups.values()
    ]


def source_records(run: Run) -> list[dict[str, Any]]:
    sources = run.get("data", "sources")
    return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []


def origin(run: Run) -> list[list[Card]]:
    """Sources, tokenizer and shards, from a run's record of its data."""
    sources = [
        Card(
            kind="source",
            title=str(source.get("name") or "unnamed"),
            facts=[
                *([str(source["kind"])] if source.get("kind") not in (None, source.get("name")) else []),
                *(counts(name, source.get(name)) for name in ("documents", "tokens") if source.get(name)),
                *([f"{digits(size / 1e6)}{SPACE}MB of text"] if (size := number(source.get("text_bytes"))) else []),
            ],
            fingerprint=text_or_none(source.get("fingerprint")),
            details=packages(source.get("packages")),
        )
        for source in source_records(run)
    ]
    vocabulary = number(run.get("data", "vocab_size"))
    tokens = number(run.get("data", "train_tokens"))
    tokenizer = Card(
        kind="tokenizer",
        title="tokenizer.json",
        facts=[f"{vocabulary:,.0f} ids".replace(",", SPACE)] if vocabulary else [],
        fingerprint=text_or_none(run.get("data", "tokenizer")),
        details=[],
    )
    shards = Card(
        kind="shards",
        title=str(run.get("data", "path") or "tokens"),
        facts=[f"{si(tokens)} training tokens"] if tokens else [],
        fingerprint=text_or_none(run.get("data", "fingerprint")),
        details=[],
    )
    return [sources, [tokenizer], [shards]] if sources else [[tokenizer], [shards]]


def chain(run: Run, run_colour: str) -> list[Card]:
    """The run, its checkpoint, and what was measured on it."""
    facts = [f"{si(tokens)} tokens" if (tokens := run.last("tokens")) else "no step logged yet"]
    if (passes := number(run.get("data", "train_tokens"))) and tokens:
        facts.append(f"{digits(tokens / passes, 2)} passes over the training split")
    if run.get("code", "version"):
        commit = run.get("code", "commit")
        facts.append(f"code {run.get('code', 'version')}" + (f" at {str(commit)[:10]}" if commit else ""))
    cards = [Card("run", run.name, facts, run.fingerprint, [], run_colour)]
    file = run.checkpoint_file()
    step = number(run.validation.get("step"))
    seen = number(run.validation.get("tokens_seen"))
    stage = [f"step {step:.0f}, {si(seen)} tokens"] if step is not None and seen is not None else []
    title = file.name if file else "no checkpoint on this disk"
    cards.append(Card("checkpoint", title, stage, run.checkpoint_fingerprint(), [], run_colour))
    results = []
    if (bits := run.judged("bits_per_byte")) is not None:
        results.append(f"{digits(bits)} bits per byte in validation")
    if run.scores:
        tasks = len({str(score["task"]) for score in run.scores})
        results.append(f"{len(run.scores)} scores in {tasks} tasks")
        scored_step = number(dig(run.evaluation, "pipeline", "step"))
        if scored_step is not None and step is not None and scored_step != step:
            results.append(f"scored at step {scored_step:.0f}, not {step:.0f}")
    measured = [name for name, found in (("validation", run.validation), ("evaluation", run.evaluation)) if found]
    title = and_list(measured) if measured else "nothing measured on it yet"
    return [*cards, Card("results", title, results, run.results_fingerprint(), [], run_colour)]


def counts(name: str, value: Any) -> str:
    """How many documents or tokens a source holds, in all or by split."""
    if isinstance(value, dict):
        splits = [f"{si(number(count))} {split}" for split, count in value.items() if number(count) is not None]
        return f"{name}: {', '.join(splits)}"
    return f"{si(number(value))} {name}"


def packages(value: Any) -> list[tuple[str, str]]:
    """A source's packages with version and hash, from a list of records or a mapping by name."""
    if isinstance(value, dict):
        value = [
            {"name": name, **(facts if isinstance(facts, dict) else {"version": facts})}
            for name, facts in value.items()
        ]
    rows = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    return [
        (
            f"{row.get('name', 'unnamed')} {row.get('version') or ''}".strip(),
            str(row.get("sha256") or row.get("hash") or ""),
        )
        for row in rows
    ]


def text_or_none(value: Any) -> str | None:
    return str(value) if value else None
