"""The verb `bench`: what was asked for, one after another, on each corpus; tables at the end, and JSON."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from data_prep.bench import encoding, gopher_rules, signatures, whole_run
from data_prep.bench.corpora import Corpus, read_corpora
from data_prep.bench.machine import BUSY, Machine
from data_prep.bench.options import BenchOptions
from data_prep.bench.repeats import KEPT
from data_prep.bench.report import as_json, print_rows, print_runs
from data_prep.bench.rounds import Row
from data_prep.bench.whole_run import WholeRun
from data_prep.files import InputError, write_json

SMALLER = 10
"""Beside the whole run stands one of so small a part of its size."""
HOW_REPEATED = (
    f"Each is repeated up to its size, from the second time with other words (half of those beyond the {KEPT} most frequent, the "
    "same at all places of a repeat) and with a near-duplicate of one document in 20."
)


def bench(options: BenchOptions, console: Console) -> dict[str, Any]:
    """Measure, print tables and return what `--json` writes."""
    options.require_disk()
    say = partial(console.print, highlight=False, soft_wrap=True)
    machine = Machine()
    say(f"{machine.cores} cores, load {machine.load:.1f} before it begins")
    if warning := machine.warning():
        say(warning)
    rows: list[Row] = []
    runs: list[WholeRun] = []
    with TemporaryDirectory(prefix="data_prep_bench_", dir=options.place) as temporary:
        folder = Path(temporary)
        corpora = read_corpora(options, folder / "python_docs", console)
        for corpus in corpora:
            say(f"{corpus.name}: {len(corpus.texts):,} documents, {corpus.bytes / 1e6:.1f} MB")
        say(HOW_REPEATED)
        for name, compare in COMPARISONS.items():
            for corpus in corpora if name in options.only else ():
                with console.status(f"{name}: {corpus.name} ..."), TemporaryDirectory(dir=folder) as own:
                    found = compare(corpus, options, Path(own))
                found = [replace(row, least=None) if options.quick else row for row in found]
                rows += found
                for row in found:
                    say(line(row))
        problem: InputError | None = None
        try:
            for run in whole_runs(corpora, options, folder) if "run" in options.only else ():
                say(f"run: {run.bytes / 1e6:,.1f} MB in {run.seconds:.1f} s")
                runs.append(run)
        except InputError as error:
            problem = error  # What was measured before is not lost.
    if rows:
        print_rows(rows, console)
    if runs:
        runs = fastest_of_each_size(runs)
        print_runs(runs, console, not options.quick)
    measured = machine.json()
    if (others := measured["used_by_others"]) is not None and others > BUSY / 2:
        say(f"others used {others:.0%} of the machine meanwhile: measure again when it is idle")
    left_out = ("json", "folder")
    settings = {name: value for name, value in asdict(options).items() if name not in left_out}
    settings["corpus"] = [
        {"name": corpus.name, "documents": len(corpus.texts), "bytes": corpus.bytes} for corpus in corpora
    ]
    result = as_json(rows, runs, not options.quick, measured, settings)
    if options.json:
        write_json(options.json, result)
    if problem:
        raise problem
    return result


def whole_runs(corpora: list[Corpus], options: BenchOptions, folder: Path) -> Iterator[WholeRun]:
    """Over a tenth, over all, and over a tenth again: what else the machine does changes between the first and the last."""
    small = options.run_megabytes / SMALLER
    for megabytes in (small, options.run_megabytes, *([small] if options.rounds > 1 else [])):
        with TemporaryDirectory(dir=folder) as own:
            yield whole_run.measure(corpora, megabytes, options, Path(own))


def fastest_of_each_size(runs: list[WholeRun]) -> list[WholeRun]:
    """One run of each size, from the smallest."""
    by_size: dict[int, WholeRun] = {}
    for run in sorted(runs, key=lambda run: (run.bytes, run.seconds)):
        by_size.setdefault(run.bytes, run)
    return list(by_size.values())


def line(row: Row) -> str:
    ratio = f"{row.ratio:.2f} x {row.beside}" if row.ratio is not None else row.note
    return f"{row.measure}, {row.corpus}: {row.what}: {ratio}"


COMPARISONS: dict[str, Callable[[Corpus, BenchOptions, Path], list[Row]]] = {
    "tokenize": encoding.measure,
    "gopher": gopher_rules.measure,
    "signatures": signatures.measure,
}
