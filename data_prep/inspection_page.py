"""A prepared corpus as one HTML page that needs nothing beside it: counts, lengths of documents, frequencies of tokens."""

from pathlib import Path

import numpy as np
from markupsafe import Markup

from data_prep import svg
from data_prep.corpus import open_corpus
from data_prep.files import write_text
from data_prep.inspection import TOP_TOKENS, spelling
from data_prep.pages import page
from data_prep.statistics import PERCENTILES, Lengths, counts, document_lengths, token_counts

CURVE_POINTS = 300


def write_page(folder: Path, split: str, file: Path) -> None:
    """Write the page of a corpus; lengths and tokens are of one split, of which all tokens are read."""
    manifest, tokenizer = open_corpus(folder)
    lengths = document_lengths(manifest, split)
    times = token_counts(manifest, split)
    order = np.argsort(-times, kind="stable")
    total, used = int(times.sum()), int((times > 0).sum())
    ranks = np.unique(np.geomspace(1, used, CURVE_POINTS).round().astype(int))
    tokens = [
        {"id": id, "spelling": spelling(tokenizer, id), "times": int(times[id]), "share": int(times[id]) / total}
        for id in order[: min(TOP_TOKENS, used)].tolist()
    ]
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
            length_plot=Markup(length_plot(lengths, kind)),
            used=f"{used:,} of {manifest.vocab_size:,} ids occur.",
            token_plot=Markup(svg.powers_curve(ranks.tolist(), times[order[ranks - 1]].tolist(), "rank", "times")),
            tokens=tokens,
        ),
    )


def length_plot(lengths: list[Lengths], kind: str) -> str:
    """The histograms of all sources on top of one another."""
    size = max(len(one.bins) for one in lengths)
    rows = [np.pad(one.bins, (0, size - len(one.bins))) for one in lengths]
    first = int(np.flatnonzero(np.sum(rows, axis=0))[0])
    labels = [svg.short(float(2**power)) if power > 13 else str(2**power) for power in range(first, size)]
    names = [one.source for one in lengths]
    return svg.columns(labels, [row[first:].tolist() for row in rows], names, "tokens, at least", kind)
