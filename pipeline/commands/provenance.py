"""`inspect --step` and `inspect --document`, printed: the documents of a batch, and the batches of a document."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from pipeline.inspection.provenance import Document, Passage, Provenance

LONGEST_ID = 32
"""Characters of an id in a table; --full and --json have it whole."""


def show_step(run: Path, step: int, *, as_json: bool, full: bool) -> int:
    """Print what a step reads, a line for each document of each sample."""
    provenance = opened(run)
    samples = provenance.batch(step)
    if as_json:
        content = {"run": str(run), "step": step, "trained": step <= provenance.done}
        content["left_out"] = step in provenance.left_out
        print(json.dumps(content | {"samples": [asdict(sample) for sample in samples]}, ensure_ascii=False, indent=1))
        return 0
    console = Console(highlight=False, markup=False)
    when = "trained" if step <= provenance.done else f"planned; the last checkpoint is of step {provenance.done:,}"
    if step in provenance.left_out:
        when += "; left out because of a spike"
    console.print(
        f"Step {step:,} of {provenance.steps:,} ({when}): {len(samples):,} samples, "
        f"{sum(passage.tokens for sample in samples for passage in sample.passages):,} tokens read"
    )
    if full:
        for sample in samples:
            for passage in sample.passages:
                console.print(
                    f"\nsample {sample.position}, {described(passage.document, passage.offset)}", style="bold"
                )
                console.print(passage.text, soft_wrap=True)
                if passage.target is not None:
                    console.print(f"→ {passage.target}", soft_wrap=True)
        return 0
    rows = [["sample", "document", "shard", "from token", "tokens", "text"]]
    for sample in samples:
        for number, passage in enumerate(sample.passages):
            document = passage.document
            name = document.name if document.id is None else f"{document.name} {shortened(document.id)}"
            position = "" if number else str(sample.position)
            rows.append(
                [position, name, document.shard, f"{passage.offset:,}", f"{passage.tokens:,}", one_line(passage)]
            )
    print_table(console, rows, left={"document", "shard", "text"})
    return 0


def show_document(run: Path, name: str, *, as_json: bool) -> int:
    """Print the steps that read a document, those that the run has had and those that it plans."""
    provenance = opened(run)
    document = provenance.find(name)
    reads = provenance.reads(document)
    if as_json:
        steps = [
            {"step": step, "trained": step <= provenance.done, "samples": samples} for step, samples in reads.items()
        ]
        content = {"run": str(run), "steps_trained": provenance.done, "steps_planned": provenance.steps}
        print(json.dumps(content | {"document": asdict(document), "steps": steps}, ensure_ascii=False, indent=1))
        return 0
    console = Console(highlight=False, markup=False)
    console.print(f"{described(document, document.offset)}, {document.tokens:,} tokens", soft_wrap=True)
    trained = sum(step <= provenance.done for step in reads)
    console.print(
        f"read by {trained:,} of the {provenance.done:,} steps up to the last checkpoint, "
        f"by {len(reads):,} of the {provenance.steps:,} of the whole run",
        soft_wrap=True,
    )
    if not reads:
        return 0
    rows = [["step", "", "samples"]]
    for step, samples in reads.items():
        when = "trained" if step <= provenance.done else "planned"
        rows.append([str(step), when, ", ".join(map(str, samples))])
    print_table(console, rows, left={"", "samples"})
    return 0


def opened(run: Path) -> Provenance:
    # What laying out the data has to say does not belong to the answer.
    with redirect_stdout(sys.stderr):
        provenance = Provenance(run)
        if provenance.reordered:
            print(
                f"By data.allow_changes {run} may have gone on with another {' and '.join(provenance.reordered)}: "
                "steps before that read other samples than are shown"
            )
    return provenance


def print_table(console: Console, rows: list[list[str]], left: set[str]) -> None:
    """Print rows of cells, the headings first; the last column is cut where the line ends."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for cells in rows:
        aligned = [
            cell.ljust(width) if heading in left else cell.rjust(width)
            for heading, cell, width in zip(rows[0], cells, widths, strict=False)
        ]
        console.print("  ".join([*aligned, cells[-1]]), no_wrap=True, overflow="ellipsis")


def described(document: Document, offset: int) -> str:
    id = "" if document.id is None else f", id {document.id!r}"
    return f"document {document.name} of source {document.source}{id}, {document.shard} from token {offset:,}"


def shortened(id: str) -> str:
    return id if len(id) <= LONGEST_ID else id[: LONGEST_ID - 1] + "…"


def one_line(passage: Passage) -> str:
    text = passage.text if passage.target is None else f"{passage.text} → {passage.target}"
    return " ".join(text.split())
