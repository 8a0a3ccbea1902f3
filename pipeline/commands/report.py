"""`python -m pipeline report FOLDER`: one self-contained HTML page about every run in a folder."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run's folder, or a folder with runs at any depth")
    parser.add_argument("--output", type=Path, help="the file to write (default: report.html in the folder)")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.reporting import document
    from pipeline.reporting.page import render
    from pipeline.reporting.runs import find_runs

    runs, remarks = find_runs(arguments.folder)
    output = arguments.output or arguments.folder / "report.html"
    written = document.write(output, render(runs, remarks, title=arguments.folder.resolve().name))
    print(f"The report of {len(runs)} run{'s' if len(runs) > 1 else ''} is {written}")
    return 0
