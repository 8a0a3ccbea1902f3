"""News articles from their titles (Brown et al. 2020, section 3.9.4), and figures of written text: diversity, repetition, perplexity."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from pipeline.evaluation.shared_files import noted, own_or_shared
from pipeline.evaluation.task_files import Row, dataset

COLUMNS = {
    "title": {"from": ["headline"], "default": ""},
    "subtitle": {"from": ["subheadline", "description", "dek", "summary"], "default": ""},
    "article": ["text", "body", "content", "maintext"],
}
REPEATED = 4
"""Words of an n-gram whose return counts as repetition: the seq-rep-4 of Welleck et al. 2020."""

TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*$")


def articles(
    *,
    name: str,
    family: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    words: int | None = None,
    **options: Any,
) -> dict[str, Dataset]:
    """News articles as `title`, `subtitle` (empty where there is none) and `article`; without a title the first line is it.

    Rows without an article under their title are left out, and counted.

    Args:
        family: tasks whose files serve this one too.
        words: an article is cut to so many, and there to its last whole sentence where it has one in the second half.
    """

    left_out = 0

    def arranged(rows: list[Row]) -> list[Row]:
        nonlocal left_out
        found = []
        for row in rows:
            title, article = (row["title"] or "").strip(), (row["article"] or "").strip()
            if not title:
                title, _, article = (part.strip() for part in article.partition("\n"))
            if not article:
                left_out += 1
                continue
            subtitle = (row["subtitle"] or "").strip()
            article = shortened(article, words) if words else article
            found.append(Row({"title": title, "subtitle": subtitle, "article": article}, row.place))
        return found

    ours = {"columns": COLUMNS, "form": arranged, "key": "article"}
    parts = dataset(name=name, data=own_or_shared(data, name, family), **{**ours, **options})
    return noted(parts, f"{left_out} without an article under a title" if left_out else "")


def shortened(text: str, words: int) -> str:
    """The beginning of a text: its line breaks stay, a last sentence that is cut off goes if that leaves half of it."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    if len(ends) <= words:
        return text
    cut = text[: ends[words - 1]]
    sentences = [end for end in ends[:words] if SENTENCE_END.search(text[:end]) and end >= len(cut) / 2]
    return cut[: sentences[-1]] if sentences else cut


def tokens(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return TOKEN.findall(text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of different n-grams among all of some texts (Li et al. 2016, distinct-n); 0 where there is none."""
    counted = [gram for text in texts for gram in ngrams(tokens(text), n)]
    return len(set(counted)) / len(counted) if counted else 0.0


def repetition(text: str, n: int = REPEATED) -> float:
    """The share of n-grams of a text that stood in it before; 0 for a text too short to have one."""
    counted = ngrams(tokens(text), n)
    return 1 - len(set(counted)) / len(counted) if counted else 0.0


def figures(document: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Of a written article: how diverse it is, how much it repeats, its length, whether it ends in a whole sentence.

    The `_overall` ones carry the text to where all are counted together.
    """
    text = results[0].strip()
    return {
        **{f"distinct_{n}": distinct([text], n) for n in (1, 2, 3)},
        **{f"distinct_{n}_overall": text for n in (1, 2, 3)},
        "repetition": repetition(text),
        "words": float(len(text.split())),
        "whole_sentence": float(bool(SENTENCE_END.search(text))),
    }


def distinct_1(texts: Sequence[str]) -> float:
    return distinct(texts, 1)


def distinct_2(texts: Sequence[str]) -> float:
    return distinct(texts, 2)


def distinct_3(texts: Sequence[str]) -> float:
    return distinct(texts, 3)


def perplexities(log_likelihood: float, text: str) -> dict[str, tuple[float, int]]:
    """What a text adds to perplexity by word and by byte and to bits per byte, as the harness's aggregations take it."""
    words, size = len(text.split()), len(text.encode())
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
        "bits_per_byte": (log_likelihood, size),
    }


def perplexity(pieces: Sequence[Sequence[float]]) -> float:
    """exp of the mean negative log-likelihood; the harness's own leaves Python's numbers where a model is very wrong."""
    exponent = -per_unit(pieces)
    return math.exp(exponent) if exponent < math.log(1e300) else math.inf


def bits(pieces: Sequence[Sequence[float]]) -> float:
    return -per_unit(pieces) / math.log(2)


def per_unit(pieces: Sequence[Sequence[float]]) -> float:
    return sum(piece[0] for piece in pieces) / sum(piece[1] for piece in pieces)


class ContinuationPerplexity(ConfigurableTask):
    """A task that asks how likely the target is after its prompt, however long it is.

    log P(target | prompt) = log P(prompt target) - log P(prompt), both by rolling windows as long as the model's context: a target that
    exceeds it is scored whole, later parts after as much of the text as their window holds. A plain log-likelihood would lose the
    target's beginning.
    """

    def __init__(self, config: dict[str, Any]):
        # The harness hands over the whole YAML, with the name of this class.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        for option in ("apply_chat_template", "chat_template"):
            kwargs.pop(option, None)
        whole = f"{ctx}{self.config.target_delimiter}{self.doc_to_target(doc)}"
        return [
            Instance("loglikelihood_rolling", doc=doc, arguments=(text,), idx=number, **kwargs)
            for number, text in enumerate((whole, ctx))
        ]

    def process_results(self, doc: dict[str, Any], results: list[float]) -> dict[str, Any]:
        whole, prompt = results
        return perplexities(whole - prompt, str(self.doc_to_target(doc)))
