"""The examples of the shipped tasks, made from rules and a seed, or from the documents that a run held out.

Task YAMLs name these functions as `custom_dataset`; each returns two parts that never overlap: `fewshot`, from which
prompts draw their examples, and `test`, which is scored.
"""

import functools
import itertools
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet
from datasets import Dataset

from data_prep.files import InputError

CHOICES = 4
CALCULATE = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}


def arithmetic(
    operations: list[str], *, digits: int = 2, test: int = 200, fewshot: int = 50, seed: int = 0, **metadata: Any
) -> dict[str, Dataset]:
    """Sums, differences and products of numbers of at most so many digits (Brown et al. 2020, section 3.9.1).

    A wrong choice is the answer to another problem of the same operation, written with as many characters.
    """
    random = Random(seed)
    numbers = 10**digits
    rows = []
    for problem in random.sample(range(len(operations) * numbers**2), test + fewshot):
        operation, a, b = operations[problem // numbers**2], problem // numbers % numbers, problem % numbers
        answer = str(CALCULATE[operation](a, b))

        def other(operation: str = operation) -> str:
            return str(CALCULATE[operation](random.randrange(numbers), random.randrange(numbers)))

        rows.append({"question": f"What is {a} {operation} {b}?", **multiple_choice(answer, other, random)})
    return parts(rows, fewshot)


def composite(*, test: int = 200, fewshot: int = 50, seed: int = 0, **metadata: Any) -> dict[str, Dataset]:
    """Two operations on three one-digit numbers, the last two in brackets (Brown et al. 2020, section 3.9.1)."""
    random = Random(seed)
    signs = {"+": "plus", "-": "minus", "*": "times"}
    rows = []
    for problem in random.sample(
        list(itertools.product(range(10), signs, range(10), signs, range(10))), test + fewshot
    ):
        a, outer, b, inner, c = problem
        value = CALCULATE[signs[outer]](a, CALCULATE[signs[inner]](b, c))
        rows.append({"question": f"What is {a}{outer}({b}{inner}{c})?", "answer": str(value)})
    return parts(rows, fewshot)


def cycle_letters(word: str, random: Random) -> str:
    """`inevitably` -> `lyinevitab`; never the word itself."""
    turns = [word[i:] + word[:i] for i in range(1, len(word))]
    return random.choice([turn for turn in turns if turn != word])


def insert_between_letters(word: str, random: Random) -> str:
    """`success` -> `s.u!c/c!e.s s`: a punctuation mark or a space after each letter but the last."""
    return "".join(letter + random.choice(".!/ ") for letter in word[:-1]) + word[-1]


def shuffle_inner_letters(word: str, random: Random, kept: int) -> str:
    """`corruption` -> `criroptuon` with one letter kept at each end; never the word itself."""
    inner = list(word[kept:-kept])
    while True:
        random.shuffle(inner)
        if (shuffled := word[:kept] + "".join(inner) + word[-kept:]) != word:
            return shuffled


def reverse_letters(word: str, random: Random) -> str:
    """`objects` -> `stcejbo`."""
    return word[::-1]


MANIPULATIONS: dict[str, Callable[[str, Random], str]] = {
    "cycle_letters": cycle_letters,
    "anagram_1": functools.partial(shuffle_inner_letters, kept=1),
    "anagram_2": functools.partial(shuffle_inner_letters, kept=2),
    "random_insertion": insert_between_letters,
    "reversed": reverse_letters,
}
# Which words a manipulation can change.
CHANGES: dict[str, Callable[[str], bool]] = {
    "cycle_letters": lambda word: len(set(word)) > 1,
    "anagram_1": lambda word: len(set(word[1:-1])) > 1,
    "anagram_2": lambda word: len(set(word[2:-2])) > 1,
    "random_insertion": lambda word: len(word) > 1,
    "reversed": lambda word: word != word[::-1],
}


def unscramble(
    manipulations: list[str],
    *,
    words: str,
    config_source: str,
    test: int = 200,
    fewshot: int = 50,
    seed: int = 0,
    **metadata: Any,
) -> dict[str, Dataset]:
    """Words to restore from a manipulation of their letters (Brown et al. 2020, section 3.9.2).

    `words` is a file of one word a line beside the task's YAML (`config_source`). A wrong choice is another word of the
    list, of the same length.
    """
    random = Random(seed)
    vocabulary = (Path(config_source).parent / words).read_text(encoding="utf-8").split()
    usable = [word for word in vocabulary if all(CHANGES[manipulation](word) for manipulation in manipulations)]
    if len(usable) < test + fewshot:
        raise InputError(f"{words} has {len(usable)} words to scramble, the task takes {test + fewshot}: add some.")
    chosen = random.sample(usable, test + fewshot)
    rows = []
    for i, word in enumerate(chosen):
        manipulate = MANIPULATIONS[manipulations[i % len(manipulations)]]
        same_length = [other for other in vocabulary if len(other) == len(word)]
        if len(set(same_length)) < CHOICES:
            raise InputError(f"{words} has fewer than {CHOICES} words as long as {word!r}: add some, or take it out.")
        rows.append(
            {
                "scrambled": manipulate(word, random),
                **multiple_choice(word, lambda: random.choice(same_length), random),  # noqa: B023 - called at once
            }
        )
    return parts(rows, fewshot)


def last_word(
    *, documents: str | None = None, test: int = 200, fewshot: int = 50, seed: int = 0, **metadata: Any
) -> dict[str, Dataset]:
    """Passages of held-out prose whose last word occurs earlier in them, as in LAMBADA (Paperno et al. 2016).

    `documents` is the folder `split` of a prepared corpus: `test` passages are from its test part, few-shot examples
    from its validation part. A wrong choice is another word of the passage.
    """
    if documents is None:
        raise InputError(
            "The last-word tasks need a corpus: evaluate a run whose data folder has its documents beside it."
        )
    scored = passages(Path(documents, "test"), test, seed)
    shown = passages(Path(documents, "validation"), fewshot, seed, unlike=scored)
    return {"fewshot": Dataset.from_list(shown), "test": Dataset.from_list(scored)}


def multiple_choice(answer: str, other: Callable[[], str], random: Random) -> dict[str, Any]:
    """The answer among draws of `other` that differ from it and are as long, in random order."""
    choices = [answer]
    while len(choices) < CHOICES:
        choice = other()
        if len(choice) == len(answer) and choice not in choices:
            choices.append(choice)
    random.shuffle(choices)
    return {"answer": answer, "choices": choices, "gold": choices.index(answer)}


def parts(rows: list[dict[str, Any]], fewshot: int) -> dict[str, Dataset]:
    return {"fewshot": Dataset.from_list(rows[:fewshot]), "test": Dataset.from_list(rows[fewshot:])}


WORD = re.compile(r"[a-z]{4,}")
SENTENCE_END = re.compile(r"(?<= )[a-z]{4,}(?=\.(?:\s|$))")
SENTENCE_START = re.compile(r"(?:(?<=[.:]\s)|(?<=\n\n))\s*(?=[A-Z])|^\s*")
PASSAGE_WORDS = (25, 60)
PASSAGES_PER_DOCUMENT = 20
# Words that grammar alone would give away.
FUNCTION_WORDS = frozenset(
    """
    about after also because been before being both does each else every from have into itself like more most
    must only other over same should some such than that their them then there these they this those through
    under until used using very were what when where whether which while will with within without would your
    """.split()  # noqa: SIM905 - fifty quoted words would be harder to read
)


def passages(folder: Path, count: int, seed: int, unlike: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """At most `count` passages that are not in `unlike`, sampled from ten times as many: a large corpus is not read whole."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise InputError(
            f"{folder} holds no documents (*.parquet): run data_prep on this machine, or choose other --tasks."
        )
    random = Random(seed)
    # Documentation repeats itself: the same sentences stand in many modules, wrapped at other columns.
    other = {wording(passage) for passage in unlike}
    found: dict[str, dict[str, Any]] = {}
    for batch in (
        batch for file in files for batch in pyarrow.parquet.ParquetFile(file).iter_batches(256, columns=["text"])
    ):
        for text in batch.column("text").to_pylist():
            document = list(passages_of(text, random))
            for passage in random.sample(document, min(len(document), PASSAGES_PER_DOCUMENT)):
                if wording(passage) not in other:
                    found.setdefault(wording(passage), passage)
        if len(found) >= 10 * count:
            break
    if not found:
        raise InputError(
            f"{folder} holds no prose for the last-word tasks: choose other --tasks for a run on this corpus."
        )
    return random.sample(list(found.values()), min(count, len(found)))


def passages_of(text: str, random: Random) -> Iterator[dict[str, Any]]:
    """Passages that end before a word which occurs in them, with three other words of theirs to choose from."""
    shortest, longest = PASSAGE_WORDS
    starts = [match.end() for match in SENTENCE_START.finditer(text)]
    for end in SENTENCE_END.finditer(text):
        answer = end.group()
        near = [start for start in starts if end.start() - 12 * longest < start < end.start()]
        passage = next((p for s in reversed(near) if len((p := text[s : end.start() - 1]).split()) >= shortest), "")
        if not passage or len(passage.split()) > longest or not is_prose(passage):
            continue
        words = set(WORD.findall(re.sub(r"\w*[A-Z0-9_.(]\w*", " ", passage))) - FUNCTION_WORDS
        # A form of the same word could not be told from the answer.
        others = sorted(word for word in words if word[:4] != answer[:4])
        if answer in words and len(others) >= CHOICES - 1:
            choices = [answer, *random.sample(others, CHOICES - 1)]
            random.shuffle(choices)
            yield {"passage": passage, "answer": answer, "choices": choices, "gold": choices.index(answer)}


def wording(passage: dict[str, Any]) -> str:
    return " ".join(passage["passage"].split())


def is_prose(passage: str) -> bool:
    """True for running text: no doctest, no tables, few names that are not words."""
    words = [word.strip(string.punctuation) for word in passage.split()]
    plain = sum(word.isalpha() and word[1:] == word[1:].lower() for word in words)
    return ">>>" not in passage and plain >= 0.8 * len(words)
