"""A prepared corpus as one HTML page that needs nothing beside it: counts, lengths of documents, frequencies of tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data_prep import svg
from data_prep.corpus import open_corpus
from data_prep.files import write_text
from data_prep.inspection import TOP_TOKENS, spelling
from data_prep.pages import page
from data_prep.statistics import PERCENTILES, Lengths, counts, document_lengths, token_counts
from data_prep.tokenizer import Tokenizer

CURVE_POINTS = 300


@dataclass(frozen=True)
class Frequencies:
    """How often the tokens of a split occur."""

    read: int
    """Tokens that were counted."""
    of: int
    """Tokens that there are."""
    used: int
    """Ids that occur in what was counted."""
    vocab_size: int
    top: list[dict[str, Any]]
    """The most frequent: id, spelling, times, share of what was counted."""
    curve: list[list[int]]
    """Rank and times, from the most frequent on."""

    @classmethod
    def of_counts(cls, times: np.ndarray, tokens: int, tokenizer: Tokenizer) -> "Frequencies":
        """`times` of each id, of a split with so many tokens."""
        order = np.argsort(-times, kind="stable")
        read, used = int(times.sum()), int((times > 0).sum())
        ranks = np.unique(np.geomspace(1, used, CURVE_POINTS).round().astype(int))
        top = [
            {"id": id, "spelling": spelling(tokenizer, id), "times": int(times[id]), "share": int(times[id]) / read}
            for id in order[: min(TOP_TOKENS, used)].tolist()
        ]
        curve = np.stack([ranks, times[order[ranks - 1]]], axis=1).tolist()
        return cls(read, tokens, used, len(times), top, curve)

    @property
    def plot(self) -> Markup:
        ranks, times = zip(*self.curve, strict=True)
        return Markup(svg.powers_curve(ranks, times, "rank", "times"))

    @property
    def sentence(self) -> str:
        """How much was counted."""
        part = (
            "" if self.read == self.of else f" Counted in {self.read:,} of {self.of:,} tokens, spread evenly over them."
        )
        return f"{self.used:,} of {self.vocab_size:,} ids occur.{part}"


def write_page(folder: Path, split: str, file: Path) -> None:
    """Write the page of a corpus; lengths and tokens are of one split, of which all tokens are read."""
    manifest, tokenizer = open_corpus(folder)
    lengths = document_lengths(manifest, split)
    frequencies = Frequencies.of_counts(token_counts(manifest, split), manifest.tokens(split), tokenizer)
    kind = "pairs" if manifest.pairs else "documents"
    write_text(
        file,
        page(
            "inspect.html",
            title=str(folder.resolve().parent.name if folder.name == "tokens" else folder.resolve().name),
            summary=f"{manifest.vocab_size:,} ids as {manifest.dtype}, fingerprint {manifest.fingerprint[:16]}",
            kind=kind,
            split=split,
            counts=counts(manifest),
            lengths=lengths,
            percentiles=PERCENTILES,
            length_plot=length_plot(lengths, kind),
            frequencies=frequencies,
        ),
    )


def length_plot(lengths: list[Lengths], kind: str) -> Markup:
    """The histograms of all sources on top of one another."""
    size = max(len(one.bins) for one in lengths)
    rows = [np.pad(one.bins, (0, size - len(one.bins))) for one in lengths]
    first = int(np.flatnonzero(np.sum(rows, axis=0))[0])
    labels = [svg.short(float(2**power)) if power > 13 else str(2**power) for power in range(first, size)]
    names = [one.source for one in lengths]
    return Markup(svg.columns(labels, [row[first:].tolist() for row in rows], names, "tokens, at least", kind))
