"""FineWeb's own filters (Penedo et al. 2024, section 3.5) with the limits and names that datatrove has."""

from dataclasses import dataclass

import numpy as np

from data_prep.filtering.lines import ends_in
from data_prep.filtering.repeats import NEWLINE, repeated, segments
from data_prep.filtering.rules import Verdict, ratio
from data_prep.filtering.words import SENTENCE_ENDS, Texts, Words, sums


@dataclass(frozen=True)
class FineWeb:
    """FineWeb's rules on lines; null switches a rule off."""

    min_ended_lines: float | None = 0.12
    """Least share of lines that end in a sign that ends a sentence."""
    max_short_lines: float | None = 0.67
    """Greatest share of short lines."""
    short_line: int = 30
    """Characters up to which a line is short."""
    max_repeated_line_characters: float | None = 0.01
    """Greatest share of characters in lines that came before."""
    max_newlines: float | None = 0.3
    """Most newlines a word."""

    def decide(self, texts: Texts, words: Words, verdict: Verdict) -> None:
        newlines = np.flatnonzero(texts.bytes == NEWLINE)
        lines = segments(texts, texts.starts, texts.ends, newlines, newlines + 1)
        solid = np.searchsorted(texts.solid, lines.ends) > np.searchsorted(texts.solid, lines.starts)
        lines = lines.where(solid)
        verdict.drop("empty", lines.counts == 0)
        if self.min_ended_lines is not None:
            ended = ends_in(texts, lines.starts, lines.ends, tuple(sorted(SENTENCE_ENDS)))
            verdict.drop("line_punct_ratio", ratio(sums(ended, lines.bounds), lines.counts) < self.min_ended_lines)
        if self.max_short_lines is not None:
            characters = texts.characters_before[lines.ends] - texts.characters_before[lines.starts]
            short = sums(characters <= self.short_line, lines.bounds)
            verdict.drop("short_line_ratio", ratio(short, lines.counts) > self.max_short_lines)
        breaks = texts.counted(newlines)
        if self.max_repeated_line_characters is not None:
            share = ratio(repeated(texts, lines)[1], texts.characters - breaks)
            verdict.drop("char_dup_ratio", share > self.max_repeated_line_characters)
        if self.max_newlines is not None:
            verdict.drop("list_ratio", ratio(breaks, words.counts) > self.max_newlines)
