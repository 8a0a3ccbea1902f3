"""`python -m pipeline report FOLDER`: one self-contained HTML page about every run in a folder."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run's folder, or a folder with runs at any depth")
    parser.add_argument("--output", type=Path, help="the file to write (default: report.html in the folder)")


def run(arguments: argparse.Namespace) -> int:
    from data_prep.files import write_bytes
    from pipeline.reporting.page import render
    from pipeline.reporting.runs import find_runs

    runs, remarks = find_runs(arguments.folder)
    output = arguments.output or arguments.folder / "report.html"
    page = render(runs, remarks, title=arguments.folder.resolve().name)
    # A sampled text may hold half of a surrogate pair, which UTF-8 cannot: it is shown as a question mark.
    write_bytes(output, page.encode("utf-8", errors="replace"))
    path = output.resolve()
    print(f"The report of {len(runs)} run{'s' if len(runs) > 1 else ''} is {path}")
    print(f"View it in any browser, no network needed: {path.as_uri()}")
    return 0
