"""Reading what a run left on disk without insisting: a field that is missing or of another shape is None, a file a remark."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """A text file; empty where it is missing or unreadable, with odd bytes replaced."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_object(path: Path, remarks: list[str], because: str) -> dict[str, Any]:
    """A JSON object; empty where the file is missing, and with a remark where it is broken."""
    if not path.exists():
        return {}
    try:
        value = parse_json(read_text(path))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        remarks.append(f"{path.name} in {path.parent.name} is not a JSON object, {because}")
        return {}
    return value


def read_lines(text: str) -> Iterator[Any]:
    """The value of each line of JSON; None for a line that is none."""
    for line in filter(str.strip, text.split("\n")):
        try:
            yield parse_json(line)
        except ValueError:
            yield None


def parse_json(text: str) -> Any:
    """JSON whose NaN and infinities, which are not JSON, become None. Raises ValueError."""
    return json.loads(text, parse_constant=lambda _: None)


def dig(value: Any, *keys: str) -> Any:
    """The value at a path of keys in nested dicts; None where the path ends early."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """A finite number as it is, anything else (None, NaN, text, a truth value) as None."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def parse(cell: str | None) -> float | None:
    try:
        return number(float(cell or ""))
    except ValueError:
        return None
