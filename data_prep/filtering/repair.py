"""Repair of text that was decoded wrongly, by ftfy with datatrove's choices: what is broken is mended, no style is enforced."""

import pyarrow as pa

from data_prep.filtering.columns import matches, rewrite

SUSPECT = r"[^\t\n\r -%'-~]"
"""Other characters of ASCII need no repair: they start no HTML entity and are no control characters."""


def repair(column: pa.Array) -> tuple[pa.Array, int]:
    """A string column with wrong decoding, HTML entities and control characters mended, and how many texts changed."""
    import ftfy

    config = ftfy.TextFixerConfig(
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        normalization=None,
    )
    return rewrite(column, matches(column, SUSPECT), lambda text: ftfy.fix_text(text, config=config))
