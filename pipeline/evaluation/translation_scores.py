"""BLEU and chrF of a whole set as sacrebleu gives them, from counts of each sentence.

A score of a set is no mean over its sentences, so its error is found by drawing sentences anew. From counts that takes a sum for each
draw; from the sentences themselves it would take sacrebleu minutes.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import sacrebleu

from pipeline.evaluation.answers import line_of

CHARACTERS = 6
BETA = 2


def marks(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, list[int]]:
    """The counts of one translation against its reference, of which `bleu` and `chrf` make the scores of a set."""
    text = line_of(results)
    return {"bleu": bleu_counts(text, doc["target"]), "chrf": chrf_counts(text, doc["target"])}


def bleu_counts(text: str, reference: str) -> list[int]:
    """Lengths of translation and reference in tokens, then how many of its 1- to 4-grams are matched, then how many it has."""
    found = sacrebleu.BLEU(effective_order=True).sentence_score(text, [reference])
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def chrf_counts(text: str, reference: str) -> list[int]:
    """For 1- to 6-grams of characters without spaces: how many the translation has, the reference, and both (Popović 2015)."""
    counts = []
    for n in range(1, CHARACTERS + 1):
        ours, theirs = (character_ngrams("".join(sentence.split()), n) for sentence in (text, reference))
        # sacrebleu leaves out what a reference too short to have such n-grams cannot match.
        counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return counts


def character_ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def bleu(counts: Sequence[Sequence[int]]) -> float:
    """BLEU of a set from the counts of its sentences, 0 to 100 (Papineni et al. 2002), smoothed as by sacrebleu's default."""
    ours, theirs, *ngrams = np.asarray(counts).sum(axis=0).tolist()
    return sacrebleu.BLEU.compute_bleu(ngrams[:4], ngrams[4:], ours, theirs, smooth_method="exp").score


def chrf(counts: Sequence[Sequence[int]]) -> float:
    """chrF of a set from the counts of its sentences, 0 to 100: the F score, recall weighing more, of means over the orders."""
    orders = np.asarray(counts).sum(axis=0).reshape(CHARACTERS, 3).tolist()
    shares = [(both / ours, both / theirs) for ours, theirs, both in orders if ours and theirs]
    if not any(chain.from_iterable(shares)):
        return 0.0
    precision, recall = (sum(column) / len(shares) for column in zip(*shares, strict=True))
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def signatures() -> dict[str, str]:
    """sacrebleu's signatures of these figures (Post 2018): what has to be the same where two BLEU scores are compared."""
    metrics = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}
    for metric in metrics.values():
        metric.corpus_score(["."], [["."]])  # A signature counts the references, so it wants to have seen some.
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}
