"""The filter of C4 (Raffel et al. 2020, section 2.2): drops lines from texts, and whole texts.

With the limits and names that datatrove has, and what the released code has beyond the paper: citations, policies and very long words.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.filtering.lines import lines_of
from data_prep.filtering.rules import Verdict
from data_prep.filtering.words import Texts, Vocabulary, Words

END_MARKS = (".", "?", "!", '"', "'")
ELLIPSIS = "..."
CITATION = r"\[\p{Nd}*\]|\[edit\]|\[citation needed\]"
POLICIES = ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"]


@dataclass(frozen=True)
class C4:
    """C4's rules on lines; null or false switches a rule off."""

    ended_lines: bool = True
    """Drop lines that do not end in one of . ? ! " ' or that end in an ellipsis."""
    min_line_words: int | None = 3
    """Drop lines of fewer words."""
    max_word_length: int | None = 1000
    """Drop lines with a longer word, in characters."""
    min_sentences: int | None = 5
    """Drop texts with fewer sentences in the lines that are left."""
    citations: bool = True
    """Remove marks such as [1], [edit] and [citation needed]."""
    lorem_ipsum: bool = True
    """Drop texts with `lorem ipsum`."""
    javascript: bool = True
    """Drop lines with `javascript`."""
    curly_bracket: bool = True
    """Drop texts with a curly bracket."""
    policy: bool = True
    """Drop lines about cookies, privacy and terms of use."""

    def edit(self, texts: Texts, vocabulary: Vocabulary, verdict: Verdict) -> tuple[pa.Array, dict[str, int]]:
        """Drop texts, and return all texts with the lines that are left, and how many lines were dropped by rule."""
        lines = self.lines(texts)
        counts = {"line-total": len(lines)}

        def drop(reason: str, broken: pl.Expr) -> None:
            nonlocal lines
            kept = lines.filter(~broken)
            counts[f"line-filter-{reason}"] = len(lines) - len(kept)
            lines = kept

        if self.max_word_length is not None:
            drop("too_long_word", pl.col("longest") > self.max_word_length)
        if self.citations:
            lines = lines.with_columns(pl.col("line").str.replace_all(CITATION, ""))
        if self.ended_lines:
            last = pl.col("line").str.slice(-1)
            drop("no_terminal_punc", ~last.is_in(END_MARKS) | pl.col("line").str.ends_with(ELLIPSIS))
        if self.min_line_words is not None:
            drop("too_few_words", pl.col("words") < self.min_line_words)
        lines = lines.with_columns(lower=pl.col("line").str.to_lowercase())
        # A line that goes for one rule is not looked at by the next, and the first line that drops the text names the reason.
        contains = lambda text: pl.col("lower").str.contains(text, literal=True)  # noqa: E731
        lines = lines.with_columns(
            lorem=contains("lorem ipsum") & self.lorem_ipsum,
            script=contains("javascript") & self.javascript,
        ).with_columns(
            curly=pl.col("line").str.contains("{", literal=True) & self.curly_bracket & ~pl.col("script"),
        )
        fatal = lines.filter(pl.col("lorem") | pl.col("curly")).group_by("text", maintain_order=True).first()
        broken = np.zeros((2, len(texts.starts)), bool)
        broken[(~fatal["lorem"]).cast(pl.Int8).to_numpy(), fatal["text"].to_numpy()] = True
        verdict.drop("lorem_ipsum", broken[0])
        verdict.drop("curly_bracket", broken[1])
        drop("javascript", pl.col("script"))
        if self.policy:
            drop("policy", pl.col("lower").str.contains_any(POLICIES))
        counts["line-kept"] = len(lines)
        if self.min_sentences is not None:
            sentences = np.zeros(len(texts.starts), np.int64)
            column = Texts(lines["line"].to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string()))
            np.add.at(sentences, lines["text"].to_numpy(), sentence_counts(vocabulary.words(column)))
            verdict.drop("too_few_sentences", sentences < self.min_sentences)
        joined = lines.group_by("text", maintain_order=True).agg(pl.col("line").str.join("\n"))
        whole = pl.DataFrame({"text": np.arange(len(texts.starts))}).join(
            joined, on="text", how="left", maintain_order="left"
        )
        edited = whole["line"].fill_null("").str.strip_chars()
        return edited.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string()), counts

    def lines(self, texts: Texts) -> pl.DataFrame:
        """The lines of all texts, stripped: number of the text, the line, its words and the characters of the longest."""
        found = lines_of(texts)
        text = np.repeat(np.arange(len(found.counts)), found.counts)
        begin, end = np.searchsorted(texts.solid, found.starts), np.searchsorted(texts.solid, found.ends)
        some = end > begin
        solid = np.append(texts.solid, 0)
        starts = np.where(some, solid[begin], found.starts)
        ends = np.where(some, solid[end - 1] + 1, found.starts)
        content = np.zeros(len(texts.bytes) + 1, np.int8)
        np.add.at(content, starts, 1)
        np.subtract.at(content, ends, 1)
        offsets = np.append(0, np.cumsum(ends - starts)).astype(np.int32)
        inside = texts.bytes[np.cumsum(content[:-1], dtype=np.int8) > 0]
        column = pa.StringArray.from_buffers(len(text), pa.py_buffer(offsets), pa.py_buffer(inside))
        pieces = Texts(column).pieces
        lengths = Texts(pieces[0]).characters
        counts = np.diff(pieces[1])
        longest = np.zeros(len(text), np.int64)
        np.maximum.at(longest, np.repeat(np.arange(len(text)), counts), lengths)
        return pl.DataFrame({"text": text, "line": pl.from_arrow(column), "words": counts, "longest": longest})


def sentence_counts(words: Words) -> np.ndarray:
    """Sentences of each text: a word that is no punctuation starts a new one if a sign that ends sentences came since the last such word."""
    vocabulary = words.vocabulary
    enders = vocabulary.enders[words.tokens]
    content = np.flatnonzero(~enders & ~vocabulary.marks[words.tokens])
    ends_before = np.append(0, np.cumsum(enders))
    text = np.searchsorted(words.bounds, content, side="right") - 1
    previous = words.bounds[text]
    inside = np.zeros(len(content), bool)
    inside[1:] = np.diff(text) == 0
    previous[inside] = content[np.flatnonzero(inside) - 1]
    opens = ends_before[content] > ends_before[previous]
    return 1 + np.bincount(text[opens], minlength=len(words.counts))
