"""What was measured, as tables and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from data_prep.bench.rounds import Row
from data_prep.bench.whole_run import WholeRun

MOST_MEMORY = 2e9
MOST_APART = 0.15


TITLES = {
    "tokenize": "tokenize: Parquet to shards, beside encoders on strings in memory",
    "gopher": "filter: Gopher's rules of repetition and quality",
    "signatures": "dedup: MinHash signatures, beside stage 1",
}


def print_rows(rows: Sequence[Row], console: Console) -> None:
    for measure in dict.fromkeys(row.measure for row in rows):
        table = Table(title=TITLES[measure], title_justify="left", box=box.SIMPLE_HEAD)
        for head in ("corpus", "", "beside"):
            table.add_column(head, no_wrap=True)
        for head in ("MB/s", "beside", "ratio", "wanted"):
            table.add_column(head, no_wrap=True, justify="right")
        own = [row for row in rows if row.measure == measure]
        for row in own:
            rates = [f"{rate:.1f}" if rate else "-" for rate in (row.rate, row.peer_rate)]
            ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
            wanted = f"{row.least:g} {verdict(row.met)}".strip() if row.least else ""
            table.add_row(row.corpus, row.what, row.beside, *rates, ratio, wanted)
        console.print(table)
        for note in dict.fromkeys(f"{row.corpus}: {row.note}" for row in own if row.note):
            console.print(note, highlight=False, soft_wrap=True)


def print_runs(runs: Sequence[WholeRun], console: Console, judged: bool) -> None:
    """Stages of runs over more and more text; `judged` says whether memory and growth are compared with what is wanted."""
    for run in runs:
        size = f"{run.bytes / 1e6:.{0 if run.bytes > 1e7 else 1}f} MB"
        table = Table("stage", title=f"run: {size} of JSON lines to shards", title_justify="left")
        for head in ("MB read", "s", "share", "MB/s", "documents kept"):
            table.add_column(head, justify="right")
        for stage in run.stages:
            share, rate = f"{stage.seconds / run.seconds:.0%}", f"{stage.rate:.1f}"
            table.add_row(
                stage.name,
                f"{stage.read_bytes / 1e6:,.1f}",
                f"{stage.seconds:.1f}",
                share,
                rate,
                f"{stage.documents:,}",
            )
        table.add_section()
        table.add_row("all", f"{run.bytes / 1e6:,.1f}", f"{run.seconds:.1f}", "", f"{run.rate:.1f}", "")
        console.print(table)
        wanted = f" (wanted: {MOST_MEMORY / 1e6:,.0f} MB, {verdict(run.peak_bytes <= MOST_MEMORY)})" if judged else ""
        console.print(
            f"{run.seconds + run.start_seconds:.1f} s with {run.start_seconds:.1f} s to start; at most "
            f"{run.worker_peak_bytes / 1e6:,.0f} MB of memory in a worker, {run.main_peak_bytes / 1e6:,.0f} MB in the process "
            f"that was started{wanted}",
            highlight=False,
            soft_wrap=True,
        )
    if (apart := apartness(runs)) is not None:
        least, most = 1 - MOST_APART, 1 + MOST_APART
        wanted = f" (wanted: {least:.2f} to {most:.2f}, {verdict(abs(apart) < MOST_APART)})" if judged else ""
        console.print(
            f"MB/s of the larger run are {1 + apart:.2f} of the smaller's{wanted}", highlight=False, soft_wrap=True
        )


def apartness(runs: Sequence[WholeRun]) -> float | None:
    """By which share the rate of the largest run differs from that of the smallest; None of a single run."""
    return runs[-1].rate / runs[0].rate - 1 if len(runs) > 1 else None


def verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "not met"


def as_json(
    rows: Sequence[Row], runs: Sequence[WholeRun], judged: bool, machine: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    apart = apartness(runs)
    whole: dict[str, Any] = {
        "runs": [run.json() for run in runs],
        "rate_largest_to_smallest": None if apart is None else 1 + apart,
        "linear": None if apart is None or not judged else abs(apart) < MOST_APART,
        "memory_met": all(run.peak_bytes <= MOST_MEMORY for run in runs) if runs and judged else None,
    }
    return {"machine": machine, "settings": settings, "comparisons": [row.json() for row in rows], "whole_run": whole}
