"""Changes to a few of many texts: those that could be concerned are found in the column, and only they become strings."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc


def matches(column: pa.Array, pattern: str) -> pa.Array:
    """Which texts of a string column match a pattern of RE2 somewhere."""
    return pc.call_function("match_substring_regex", [column], pc.MatchSubstringOptions(pattern))


def rewrite(column: pa.Array, concerned: pa.Array, change: Callable[[str], str]) -> tuple[pa.Array, int]:
    """A string column in which the concerned texts are changed, and how many of them became another text."""
    places = pc.call_function("indices_nonzero", [concerned])
    old = column.take(places).to_pylist()
    new = [change(text) for text in old]
    changed = sum(before != after for before, after in zip(old, new, strict=True))
    if not changed:
        return column, 0
    return pc.call_function("replace_with_mask", [column, concerned, pa.array(new, pa.string())]), changed
