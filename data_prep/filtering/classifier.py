"""GPT-3's quality filter (Brown et al. 2020, appendix A): a logistic regression that tells reference text from raw text.

Its features are hashed words. A raw document of score s is kept if a Pareto variate exceeds 1 - s, so that some documents
unlike the reference stay. The variate is a function of the document's id, so every run decides alike.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy  # Its parts are loaded when they are used: most corpora have no classifier.

from data_prep import document
from data_prep.files import InputError, atomic_path
from data_prep.filtering.rules import Verdict
from data_prep.ngrams import find_words, mixed

HELD_OUT = 0.1
"""Share of the examples on which the classifier is not trained, but tried."""


@dataclass(frozen=True)
class Classifier:
    """Keep raw documents that look like those of the reference sources."""

    reference: tuple[str, ...]
    """Names of the sources that are examples of good text; they are not filtered by this."""
    alpha: float = 9.0
    """Shape of the Pareto distribution; a greater one keeps fewer documents of a low score."""
    features: int = 2**18
    """Numbers that words are hashed to; a power of 2."""
    documents: int = 20_000
    """About how many documents of reference and of raw text the classifier sees."""
    penalty: float = 1e-5
    """Weight of the squares of the coefficients beside the mean loss."""

    def __post_init__(self) -> None:
        if not self.reference:
            raise InputError("filter.classifier.reference is empty: name at least one source of good text.")
        if not self.alpha > 0:
            raise InputError(f"filter.classifier.alpha is {self.alpha}: the shape of a Pareto distribution is above 0.")
        if self.features < 2 or self.features & (self.features - 1):
            raise InputError(f"filter.classifier.features is {self.features}: give a power of 2, such as {2**18}.")
        if self.documents < 20:
            raise InputError(f"filter.classifier.documents is {self.documents}: it takes 20 at least.")
        if self.penalty < 0:
            raise InputError(f"filter.classifier.penalty is {self.penalty}: it is at least 0.")


class Scores:
    """A trained classifier: one coefficient a feature, and last the constant."""

    def __init__(self, coefficients: np.ndarray, alpha: float):
        self.coefficients, self.alpha = coefficients, alpha

    @classmethod
    def load(cls, path: Path, alpha: float) -> "Scores":
        return cls(np.load(path), alpha)

    def of(self, column: pa.Array) -> np.ndarray:
        """The probability of each text to be of the reference, float64."""
        counts = features(column, len(self.coefficients) - 1)
        return scipy.special.expit(counts @ self.coefficients[:-1] + self.coefficients[-1])

    def decide(self, ids: pa.Array, column: pa.Array, verdict: Verdict) -> None:
        verdict.drop("low_score", ~(pareto(ids, self.alpha) > 1 - self.of(column)))


def uniform(ids: pa.Array, purpose: str) -> np.ndarray:
    """For each id a number from 0 to below 1, another for another purpose."""
    digests = (hashlib.sha256(f"{purpose}\0{id}".encode()).digest()[:8] for id in ids.to_pylist())
    return np.fromiter((int.from_bytes(digest, "big") >> 11 for digest in digests), np.float64, len(ids)) / 2**53


def pareto(ids: pa.Array, alpha: float) -> np.ndarray:
    """For each id a variate as `numpy.random.pareto` draws them: (1 - u)^(-1/alpha) - 1, at least 0."""
    return (1 - uniform(ids, "pareto")) ** (-1 / alpha) - 1


def features(column: pa.Array, count: int) -> "scipy.sparse.csr_matrix":
    """Hashed words of each text: the logarithm of 1 + how often they are there, rows of length 1."""
    texts = column.to_pylist()
    words = find_words("\n".join(texts))
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    rows = np.searchsorted(starts, words.starts, side="right") - 1
    columns = (mixed(words.hashes) >> np.uint64(65 - count.bit_length())).astype(np.int64)
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), count))
    matrix.sum_duplicates()
    matrix.data = np.log1p(matrix.data)
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    matrix.data /= np.repeat(lengths, np.diff(matrix.indptr))
    return matrix


def examples(
    folders: dict[str, Path], share: float, count: int
) -> Iterator[tuple["scipy.sparse.csr_matrix", np.ndarray]]:
    """Features of about this share of the documents of some sources, and a number that says which are held out."""
    for source, folder in folders.items():
        for batch, own_share in document.some(folder, source, share, "example"):
            place = uniform(batch.column("id"), f"example\0{source}")
            chosen = place < own_share
            if chosen.any():
                yield features(batch.column("text").filter(pa.array(chosen)), count), place[chosen] / own_share


def train(
    config: Classifier, reference: dict[str, Path], raw: dict[str, Path], sizes: dict[str, int], target: Path
) -> dict[str, Any]:
    """Train a classifier on documents of reference and raw sources, whose numbers are given; writes `classifier.npy`.

    Returns how many documents it saw and held out, and of how many of these it told the kind.
    """
    parts, labels, places = [], [], []
    for label, folders in ((1, reference), (0, raw)):
        there = sum(sizes[source] for source in folders)
        share = min(1.0, config.documents / max(1, there))
        found = list(examples(folders, share, config.features))
        if sum(len(place) for _, place in found) < 10:
            raise InputError(
                f"The classifier has {there} documents of {', '.join(folders) or 'no source'} to learn from: it takes at "
                "least 10 of the reference and 10 of raw text (`filter.classifier.reference`, `filter.sources`)."
            )
        for matrix, place in found:
            parts.append(matrix)
            labels.append(np.full(len(place), label))
            places.append(place)
    matrix, label, held = (
        scipy.sparse.csr_matrix(scipy.sparse.vstack(parts)),
        np.concatenate(labels),
        np.concatenate(places) < HELD_OUT,
    )
    coefficients = fit(scipy.sparse.csr_matrix(matrix[~held]), label[~held], config.features, config.penalty)
    with atomic_path(target / "classifier.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, coefficients)
    score = scipy.special.expit(matrix[held] @ coefficients[:-1] + coefficients[-1])
    right = int(((score > 0.5) == label[held]).sum())
    return {
        "reference_documents": int(label.sum()),
        "raw_documents": int((1 - label).sum()),
        "held_out": int(held.sum()),
        "right": right,
    }


def fit(matrix: "scipy.sparse.csr_matrix", label: np.ndarray, features: int, penalty: float) -> np.ndarray:
    """Coefficients and constant of a logistic regression in which both classes weigh the same, float32."""
    weight = np.where(label == 1, 0.5 / max(1, label.sum()), 0.5 / max(1, (1 - label).sum()))
    signs = 2.0 * label - 1
    transposed = scipy.sparse.csr_matrix(matrix.T)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        margin = signs * (matrix @ values[:-1] + values[-1])
        slope = -signs * weight * scipy.special.expit(-margin)
        gradient = np.append(transposed @ slope + 2 * penalty * values[:-1], slope.sum())
        return float(weight @ np.logaddexp(0, -margin) + penalty * values[:-1] @ values[:-1]), gradient

    return scipy.optimize.minimize(
        loss, np.zeros(features + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    ).x.astype("<f4")
