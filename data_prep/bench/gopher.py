"""Gopher's filters beside datatrove's two, document by document as its executor runs them: time, and whether decisions agree."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.document import text_lengths
from data_prep.filtering.gopher import GopherQuality, GopherRepetition
from data_prep.filtering.stage import FilterConfig, Filters, pieces

SAMPLE_BYTES = 20_000_000
"""datatrove filters about so many bytes, documents drawn from all of the corpus; it takes half a minute for them."""


def measure(
    texts: pa.StringArray, ids: Sequence[str], repeats: int = 3, sample_bytes: int = SAMPLE_BYTES
) -> dict[str, Any]:
    """Filter texts with Gopher's rules of repetition and quality, and a sample of them with datatrove, each the best of some times.

    Seconds are of one process; `seconds` begins with an empty vocabulary, `seconds_again` with that of the whole corpus. `peer` is
    None where datatrove is not installed; otherwise it has `documents`, `bytes` and `seconds` of what datatrove filtered, `ratio`
    (bytes a second, ours by theirs), and the shares of its documents for which `decisions` and `reasons` are the same.
    """
    batch = pa.record_batch({"id": pa.array(ids), "text": texts, "source": pa.repeat("", len(texts))})
    lengths = text_lengths(texts)
    chosen = sample(lengths, sample_bytes)
    theirs, peer = datatrove_filters(), texts.take(pa.array(chosen)).to_pylist()
    first, again, other = [], [], []
    ours, expected = [], []
    for _ in range(repeats):
        filters = Filters(FilterConfig(gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality()))
        for times in (first, again):
            started = time.perf_counter()
            ours = reasons(filters, batch)
            times.append(time.perf_counter() - started)
        if theirs:
            started = time.perf_counter()
            expected = [theirs(text) for text in peer]
            other.append(time.perf_counter() - started)
    size = int(lengths.sum())
    result: dict[str, Any] = {
        "documents": len(texts),
        "bytes": size,
        "seconds": min(first),
        "seconds_again": min(again),
        "peer": None,
    }
    if theirs:
        mine = [ours[k] for k in chosen.tolist()]
        sampled = int(lengths[chosen].sum())
        rate = sampled / min(other)
        result["peer"] = {
            "name": "datatrove",
            "documents": len(peer),
            "bytes": sampled,
            "sampled": len(peer) < len(texts),
            "seconds": min(other),
            "ratio": size / min(first) / rate,
            "ratio_again": size / min(again) / rate,
            "decisions": share((a is None) == (b is None) for a, b in zip(mine, expected, strict=True)),
            "reasons": share(a == b for a, b in zip(mine, expected, strict=True)),
        }
    return result


def sample(lengths: np.ndarray, size: int) -> np.ndarray:
    """The numbers of documents drawn at random until they have so many bytes, in order; all of them where they have fewer."""
    # Not every k-th: of a corpus that is repeated those would be the same ones again and again.
    drawn = np.random.default_rng(0).permutation(len(lengths))
    before = np.cumsum(lengths[drawn]) - lengths[drawn]
    return np.sort(drawn[before < size])


def share(same: Iterable[bool]) -> float:
    """Of how many this is true; of none, all."""
    found = list(same)
    return sum(found) / len(found) if found else 1.0


def reasons(filters: Filters, batch: pa.RecordBatch) -> list[str | None]:
    """The reason why each document is dropped, None for one that is kept."""
    found: list[str | None] = []
    for piece in pieces(batch):
        # By place, since ids need not differ.
        places = pa.array([str(k) for k in range(piece.num_rows)], pa.string())
        dropped = filters.apply(piece.set_column(0, "id", places)).dropped
        here: list[str | None] = [None] * piece.num_rows
        for place, reason in zip(dropped["id"].to_pylist(), dropped["reason"].to_pylist(), strict=True):
            here[int(place)] = reason
        found += here
    return found


def datatrove_filters() -> Callable[[str], str | None] | None:
    """datatrove's reason for a text: repetition first, quality of what passed; None where it cannot be imported."""
    try:
        import spacy  # noqa: F401
        from datatrove.data import Document
        from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    except ImportError:
        return None
    filters = GopherRepetitionFilter(), GopherQualityFilter()

    def reason(text: str) -> str | None:
        document = Document(text=text, id="")
        for judge in filters:
            answer = judge.filter(document)
            if isinstance(answer, tuple):
                return answer[1]
        return None

    # Loads spaCy's rules, which is no part of the work.
    reason("It reads words. " * 60)
    return reason
