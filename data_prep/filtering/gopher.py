"""The filters of Gopher (Rae et al. 2021, section A.1.1 and Table A1) with the limits and names that datatrove has."""

from dataclasses import dataclass

import numpy as np

from data_prep.files import InputError
from data_prep.filtering.lines import blank_stripped, ends_in, lines_of, starts_with
from data_prep.filtering.repeats import Runs, newline_runs, repeated, segments
from data_prep.filtering.rules import Verdict, ratio
from data_prep.filtering.words import Texts, Words


@dataclass(frozen=True)
class GopherQuality:
    """Gopher's rules of quality; null switches a rule off."""

    min_words: int | None = 50
    """Fewest words that are more than punctuation."""
    max_words: int | None = 100_000
    """Most words that are more than punctuation."""
    min_word_length: float | None = 3
    """Least mean length of those words, in characters."""
    max_word_length: float | None = 10
    """Greatest mean length of those words, in characters."""
    max_symbols: float | None = 0.1
    """Most signs # a word, and most ellipses a word."""
    max_bullet_lines: float | None = 0.9
    """Greatest share of lines that start with a bullet point."""
    max_ellipsis_lines: float | None = 0.3
    """Greatest share of lines that end in an ellipsis."""
    min_alphabetic: float | None = 0.8
    """Least share of words that have a letter."""
    min_stop_words: int | None = 2
    """Fewest different stop words."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words of which every text has some, as they are written."""

    def __post_init__(self) -> None:
        for name in ("words", "word_length"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least and most and least > most:
                raise InputError(
                    f"filter.gopher_quality.min_{name} is {least} and max_{name} {most}: nothing is between."
                )

    def decide(self, texts: Texts, words: Words, verdict: Verdict) -> None:
        vocabulary = words.vocabulary
        worded = words.total(vocabulary.worded)
        length = words.total(np.where(vocabulary.worded, vocabulary.lengths, 0)) / np.maximum(worded, 1)
        if self.min_words:
            verdict.drop("gopher_short_doc", worded < self.min_words)
        if self.max_words:
            verdict.drop("gopher_long_doc", worded > self.max_words)
        if self.min_word_length:
            verdict.drop("gopher_below_avg_threshold", length < self.min_word_length)
        if self.max_word_length:
            verdict.drop("gopher_above_avg_threshold", length > self.max_word_length)
        if self.max_symbols:
            hashes = texts.counted(texts.places("#"))
            verdict.drop("gopher_too_many_hashes", ratio(hashes, words.counts) > self.max_symbols)
            ellipses = dots(texts) + texts.counted(texts.places("…"))
            verdict.drop("gopher_too_many_ellipsis", ratio(ellipses, words.counts) > self.max_symbols)
        lines = lines_of(texts)
        text, starts, ends = blank_stripped(texts, lines)
        if self.max_bullet_lines:
            bullets = starts_with(texts, starts, ends, ("•", "-"))
            share = ratio(np.bincount(text[bullets], minlength=len(worded)), lines.counts)
            verdict.drop("gopher_too_many_bullets", share > self.max_bullet_lines)
        if self.max_ellipsis_lines:
            ellipses = ends_in(texts, starts, ends, ("...", "…"))
            share = ratio(np.bincount(text[ellipses], minlength=len(worded)), lines.counts)
            verdict.drop("gopher_too_many_end_ellipsis", share > self.max_ellipsis_lines)
        if self.min_alphabetic:
            alphabetic = ratio(words.total(vocabulary.alphabetic), words.counts)
            verdict.drop("gopher_below_alpha_threshold", alphabetic < self.min_alphabetic)
        if self.min_stop_words:
            verdict.drop("gopher_enough_stop_words", self.different_stop_words(words) < self.min_stop_words)

    def different_stop_words(self, words: Words) -> np.ndarray:
        """How many of the stop words each text has."""
        numbers = [words.vocabulary.word_numbers.get(word) for word in dict.fromkeys(self.stop_words)]
        column = np.full(len(words.vocabulary.lengths), -1)
        known = [number for number in numbers if number is not None]
        column[known] = np.arange(len(known))
        which = column[words.tokens]
        there = np.flatnonzero(which >= 0)
        text = np.searchsorted(words.bounds, there, side="right") - 1
        found = np.zeros((len(words.counts), max(1, len(known))), bool)
        found[text, which[there]] = True
        return found.sum(axis=1)


def dots(texts: Texts) -> np.ndarray:
    """How many times each text has three full stops, none counted twice."""
    places = texts.places("...")
    if not len(places):
        return np.zeros(len(texts.starts), np.int64)
    # A row of R places in succession is R + 2 full stops; those of two texts that touch are two rows.
    opening = np.ones(len(places), bool)
    opening[1:] = np.diff(places) > 1
    starts = np.flatnonzero(opening)
    rows = np.diff(np.append(starts, len(places)))
    text = np.searchsorted(texts.offsets, places[starts], side="right") - 1
    return np.bincount(text, (rows + 2) // 3, minlength=len(texts.starts)).astype(np.int64)


@dataclass(frozen=True)
class GopherRepetition:
    """Gopher's rules of repetition; null switches a rule off."""

    max_repeated_lines: float | None = 0.3
    """Greatest share of lines that came before."""
    max_repeated_paragraphs: float | None = 0.3
    """Greatest share of paragraphs that came before."""
    max_repeated_line_characters: float | None = 0.2
    """Greatest share of characters in lines that came before."""
    max_repeated_paragraph_characters: float | None = 0.2
    """Greatest share of characters in paragraphs that came before."""
    top_ngrams: dict[int, float] | None = None
    """N, and the greatest share of characters that the most frequent N words in a row may have (0.2, 0.18, 0.16 for 2 to 4)."""
    repeated_ngrams: dict[int, float] | None = None
    """N, and the greatest share of characters in N words in a row that came before (0.15 to 0.10 for 5 to 10)."""

    def __post_init__(self) -> None:
        for name in ("top_ngrams", "repeated_ngrams"):
            for n in getattr(self, name) or ():
                if n < 1:
                    raise InputError(f"filter.gopher_repetition.{name} has {n}: runs are of one word at least.")

    def decide(self, texts: Texts, words: Words, verdict: Verdict) -> None:
        self.decide_lines(texts, verdict)
        self.decide_runs(texts, words, verdict)

    def decide_lines(self, texts: Texts, verdict: Verdict) -> None:
        """The rules on lines and paragraphs, for which no words are needed."""
        characters = texts.characters
        verdict.drop("empty", characters == 0)
        starts, ends = newline_runs(texts)
        first, last = stripped(texts)
        text = np.searchsorted(texts.offsets, starts, side="right") - 1
        between = (ends - starts > 1) & (starts > first[text]) & (starts < last[text])
        paragraphs = segments(texts, first, last, starts[between], ends[between])
        count, size = repeated(texts, paragraphs)
        if self.max_repeated_paragraphs:
            verdict.drop("dup_para_frac", ratio(count, paragraphs.counts) > self.max_repeated_paragraphs)
        if self.max_repeated_paragraph_characters:
            verdict.drop("dup_para_char_frac", ratio(size, characters) > self.max_repeated_paragraph_characters)
        lines = segments(texts, texts.starts, texts.ends, starts, ends)
        count, size = repeated(texts, lines)
        if self.max_repeated_lines:
            verdict.drop("dup_line_frac", ratio(count, lines.counts) > self.max_repeated_lines)
        if self.max_repeated_line_characters:
            verdict.drop("dup_line_char_frac", ratio(size, characters) > self.max_repeated_line_characters)

    def decide_runs(self, texts: Texts, words: Words, verdict: Verdict) -> None:
        """The rules on runs of words."""
        characters, runs = texts.characters, Runs(words)
        for n, most in (TOP_NGRAMS if self.top_ngrams is None else self.top_ngrams).items():
            verdict.drop(f"top_{n}_gram", ratio(runs.top_characters(n, verdict.kept), characters) > most)
        self.decide_repeated(runs, characters, verdict)

    def decide_repeated(self, runs: Runs, characters: np.ndarray, verdict: Verdict) -> None:
        limits = REPEATED_NGRAMS if self.repeated_ngrams is None else self.repeated_ngrams
        if not limits:
            return
        for n, most in limits.items():
            # Few texts are left to walk over.
            suspect = verdict.kept & (ratio(runs.covered_characters(n, verdict.kept), characters) > most)
            again = runs.repeated_characters(n, suspect)
            verdict.drop(f"duplicated_{n}_n_grams", ratio(again, characters) > most)


TOP_NGRAMS = {2: 0.2, 3: 0.18, 4: 0.16}
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def stripped(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Where each text starts and ends without white space around it."""
    some = texts.ends > texts.starts
    edges = texts.bytes[np.concatenate([texts.starts[some], texts.ends[some] - 1])]
    if not ((edges <= 32) | (edges >= 0x80)).any():
        return texts.starts, texts.ends
    starts, ends = texts.piece_spans
    begin, end = np.searchsorted(starts, texts.starts), np.searchsorted(starts, texts.ends)
    first, last = texts.starts.copy(), texts.starts.copy()
    some = end > begin
    first[some], last[some] = starts[begin[some]], ends[end[some] - 1]
    return first, last
