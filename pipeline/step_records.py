"""Files with a line a step, CSV or JSON: what a run appends to as it goes, and cuts where it goes back."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.files import write_text


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a last one that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            lines.append(json.loads(line))
        except ValueError:
            if line.endswith("\n"):
                raise
    return lines


def append_line(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def keep_lines(path: Path, stays: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that do not stay, and one that a kill cut short."""
    if path.exists():
        lines = [line for line in read_lines(path) if stays(line)]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv, which may still grow or not be there yet; a last line that is cut short is left out."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if None not in row.values() and row.get("step", "").isdigit()]
