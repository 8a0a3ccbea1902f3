"""Marks of an answer in a few words: exact match against aliases, and F1 of words.

Task YAMLs name the functions at the end as `process_results`: they take a question and the model's text, and return each metric.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.evaluation.task_forms import NO_ANSWER

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)
TYPOGRAPHIC = frozenset("‘’´`")


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and double spaces, as SQuAD's evaluation has it (Rajpurkar et al. 2016, section 6.1)."""
    text = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def normalised_as_trivia(text: str) -> str:
    """As `normalised`, but punctuation, typographic too, becomes a space, as TriviaQA's evaluation has it (Joshi et al. 2017)."""
    marks = PUNCTUATION | TYPOGRAPHIC
    text = "".join(" " if character in marks else character for character in text.lower())
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(answer: str, accepted: Sequence[str], normalise: Callable[[str], str] = normalised) -> float:
    """1 where the answer is one of the accepted ones after normalisation, else 0."""
    return float(normalise(answer) in {normalise(text) for text in accepted})


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The largest harmonic mean of precision and recall of the answer's words, over the accepted answers."""
    return max((word_f1(normalised(answer).split(), normalised(text).split()) for text in accepted), default=0.0)


def word_f1(answer: Sequence[str], accepted: Sequence[str]) -> float:
    if not answer or not accepted:
        # Nothing is right only where nothing is expected (the rule of SQuAD 2.0).
        return float(not answer and not accepted)
    shared = sum((Counter(answer) & Counter(accepted)).values())
    precision, recall = shared / len(answer), shared / len(accepted)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def without_abstention(text: str) -> str:
    """The answer, or nothing where it says that there is none: what SQuAD 2.0's evaluation takes for that."""
    return "" if normalised(text) == normalised(NO_ANSWER) else text


def line_of(results: Sequence[Any]) -> str:
    """What the model wrote, up to the end of its line."""
    text = results[0] if isinstance(results[0], str) else results[0][0]
    return text.partition("\n")[0].strip()


def short_answer(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Exact match of an answer from memory (closed book)."""
    return {"exact_match": exact_match(line_of(results), doc["answers"])}


def trivia_answer(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Exact match as TriviaQA's evaluation takes it."""
    return {"exact_match": exact_match(line_of(results), doc["answers"], normalised_as_trivia)}


def passage_answer(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """F1 and exact match of an answer from a passage, or of the remark that it holds none (SQuAD 2.0)."""
    answer = without_abstention(line_of(results))
    accepted = [without_abstention(text) for text in doc["answers"]]
    return {"f1": f1(answer, accepted), "exact_match": exact_match(answer, accepted)}
