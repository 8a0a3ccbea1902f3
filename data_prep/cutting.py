"""Cutting matches out of documents: which characters go, what becomes of the pieces, and a row about everything removed."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep import document
from data_prep.collisions import TestNgrams
from data_prep.document import SIDES
from data_prep.ngrams import words_of

REMOVED = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "side": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "reason": pa.string(),
        "test_sets": pa.list_(pa.string()),
        "words": pa.list_(pa.string()),
        "text": pa.string(),
    }
)
"""A passage that was removed: document, characters, why, and of a match the test sets and the words that collided."""
MATCH, SHORT, SPLIT, PAIR = "match", "short piece", "split too often", "rest of a pair"
PIECE = re.compile(r"\[\d+:\d+\]$")
Spans = list[tuple[int, int]]


class Cutter:
    """Cuts the documents of a batch, given its hits.

    Args:
        margin: characters removed on each side of a match.
        least: characters of the shortest piece that is kept.
        most_splits: a document with more passages to remove is dropped whole.
        common: of each N-gram of the tests whether it is ignored.

    Attributes:
        passages: how many removed passages collided with each test set.
        ignored: the words of the common N-grams that were met, by number.
    """

    def __init__(self, margin: int, least: int, most_splits: int, tests: TestNgrams, common: np.ndarray):
        self.margin, self.least, self.most_splits = margin, least, most_splits
        self.tests, self.common = tests, common
        self.passages = dict.fromkeys(tests.members, 0)
        self.ignored: dict[int, str] = {}

    def cut(
        self, batch: pa.RecordBatch, hits: pa.RecordBatch, source: str, counts: dict[str, int]
    ) -> tuple[list[pa.RecordBatch], list[dict[str, Any]]]:
        """The documents that are left, in their order, and the rows of REMOVED; `counts` are added to.

        Only the documents with a match become Python objects.
        """
        columns = document.sides(batch)
        row, side, start, end, ngram = (column.to_numpy() for column in hits.columns)
        common = self.common[ngram]
        self._name_ignored(columns, row, side, start, end, np.where(common, ngram, -1))
        row, side, start, end, ngram = (column[~common] for column in (row, side, start, end, ngram))
        if not len(row):
            return [batch], []
        in_sets = self.tests.sets_of(ngram)
        touched = np.unique(row)
        pieces: list[tuple[int, str, str]] = []
        removed: list[dict[str, Any]] = []
        for k in touched.tolist():
            own = slice(*np.searchsorted(row, (k, k + 1)))
            id = batch.column("id")[k].as_py()
            texts = [column[k].as_py() for column in columns.values()]
            left, rows = self._cut_document(
                texts, side[own], start[own], end[own], {name: each[own] for name, each in in_sets.items()}
            )
            removed += [{"id": id, "source": source, **each} for each in rows]
            pieces += [(k, f"{id}[{begin}:{stop}]", texts[0][begin:stop]) for begin, stop in left]
            counts["contaminated"] += 1
            counts["dropped"] += not left
            counts["removed_passages"] += sum(each["reason"] == MATCH for each in rows)
            counts["removed_characters"] += sum(each["end"] - each["start"] for each in rows)
        untouched = np.ones(batch.num_rows, bool)
        untouched[touched] = False
        whole = batch.select(["id", *columns]).filter(pa.array(untouched))
        if not pieces:
            return [whole], removed
        rows, ids, texts = zip(*pieces, strict=True)
        cut = pa.record_batch([pa.array(ids, pa.string()), pa.array(texts, pa.string())], names=["id", "text"])
        order = np.argsort(np.concatenate([np.flatnonzero(untouched), rows]), kind="stable")
        table = pa.Table.from_batches([whole, cut]).combine_chunks().take(pa.array(order))
        return table.to_batches(), removed

    def _cut_document(
        self, texts: list[str], sides: np.ndarray, starts: np.ndarray, ends: np.ndarray, in_sets: dict[str, np.ndarray]
    ) -> tuple[Spans, list[dict[str, Any]]]:
        """The pieces to keep of one document, and its rows of REMOVED, which with the pieces make up all of its text."""
        rows: list[dict[str, Any]] = []
        left: Spans = []
        splits = 0
        for number, text in enumerate(texts):
            own = sides == number
            start, end = starts[own], ends[own]
            passages, rest = divided(len(text), start, end, self.margin)
            for begin, stop in passages:
                inside = (start >= begin) & (end <= stop)
                sets = [name for name, each in in_sets.items() if each[own][inside].any()]
                for name in sets:
                    self.passages[name] += 1
                runs = joined(list(zip(start[inside].tolist(), end[inside].tolist(), strict=True)))
                words = [" ".join(words_of(text[first:last])) for first, last in runs]
                rows.append(removed_row(number, text, begin, stop, MATCH, sets, words))
            splits += len(passages)
            left += rest
        pair = len(texts) > 1
        if pair or splits > self.most_splits:
            reason = PAIR if pair else SPLIT
            for number, text in enumerate(texts):
                own = sides == number
                rest = divided(len(text), starts[own], ends[own], self.margin)[1]
                rows += [removed_row(number, text, begin, stop, reason) for begin, stop in rest]
            return [], rows
        rows += [removed_row(0, texts[0], *span, SHORT) for span in left if span[1] - span[0] < self.least]
        return [span for span in left if span[1] - span[0] >= self.least], sorted(rows, key=lambda row: row["start"])

    def _name_ignored(self, columns: dict[str, pa.Array], row, side, start, end, ngram) -> None:
        """Keep the words of common N-grams that are met for the first time."""
        texts = list(columns.values())
        numbers, first = np.unique(ngram, return_index=True)
        for number, k in zip(numbers.tolist(), first.tolist(), strict=True):
            if number >= 0 and number not in self.ignored:
                text = texts[side[k]][int(row[k])].as_py()
                self.ignored[number] = " ".join(words_of(text[start[k] : end[k]]))


def ignored_table(ignored: Mapping[int, str], documents: np.ndarray) -> pa.Table:
    """The words of common N-grams, the most frequent first, and in how many documents each stands."""
    order = sorted(ignored, key=lambda number: (-documents[number], ignored[number]))
    columns = {"words": [ignored[k] for k in order], "documents": [int(documents[k]) for k in order]}
    return pa.table(columns, pa.schema({"words": pa.string(), "documents": pa.int64()}))


def divided(length: int, starts: np.ndarray, ends: np.ndarray, margin: int) -> tuple[Spans, Spans]:
    """The passages to remove from a text, matches with a margin, those that touch as one; and the pieces between and around them."""
    passages = joined(
        [(max(0, s - margin), min(length, e + margin)) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]
    )
    edges = [(0, 0), *passages, (length, length)]
    rest = [(before[1], after[0]) for before, after in pairwise(edges)]
    return passages, [span for span in rest if span[0] < span[1]]


def joined(spans: Spans) -> Spans:
    """Spans in their order, those that overlap or touch as one."""
    found: Spans = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def removed_row(
    side: int,
    text: str,
    start: int,
    end: int,
    reason: str,
    sets: list[str] | None = None,
    words: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "side": SIDES[side],
        "start": start,
        "end": end,
        "reason": reason,
        "test_sets": sets or [],
        "words": words or [],
        "text": text[start:end],
    }


def whole_id(id: str) -> str:
    """The id of the document that a piece was cut from, so that all pieces of a document are in one split."""
    return PIECE.sub("", id)
