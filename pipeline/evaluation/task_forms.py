"""How published files lay out passages, conversations and choices, brought to one row a question.

Each arrangement takes rows whose columns have the task's names and returns rows that the task's prompts are made of.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.files import InputError
from pipeline.evaluation.file_rows import Row

NO_ANSWER = "N/A"
"""What SQuAD 2.0's questions without an answer are to be answered with."""

LETTERS = "ABCDEFGHIJ"
CONNECTIVES = {"cause": "because", "effect": "so"}


def arranged_as(row: Row, **values: Any) -> Row:
    return Row({**row, **values}, row.place)


def with_earlier(rows: list[Row], answer: Callable[[Row], str]) -> list[Row]:
    """Each row with the questions before it on its passage, and their answers: the paper's prompts hold them (Figures G.1, G.28)."""
    before: dict[str, str] = defaultdict(str)
    found = []
    for row in rows:
        found.append(arranged_as(row, earlier=before[row["passage"]]))
        before[row["passage"]] += f"Q: {row['question']}\n\nA: {answer(row)}\n\n"
    return found


def squad(rows: list[Row]) -> list[Row]:
    """Questions on a passage, some of which it does not answer."""
    answered = []
    for row in rows:
        answers = row["answers"]
        texts = answers.get("text", []) if isinstance(answers, Mapping) else answers
        texts = [texts] if isinstance(texts, str) else list(texts or [])
        answered.append(arranged_as(row, answers=[text for text in texts if text] or [NO_ANSWER]))
    return with_earlier(answered, lambda row: row["answers"][0])


def coqa(rows: list[Row]) -> list[Row]:
    """Conversations about a passage, or a turn of one on each row; the turns before it are part of a question."""
    turns = []
    for row in rows:
        questions, answers = spoken(row["question"]), spoken(row["answers"])
        if not isinstance(row["question"], list | Mapping):
            answers = [answers]
        if len(questions) != len(answers):
            raise InputError(f"{row.place} has {len(questions)} questions and {len(answers)} answers: correct it.")
        others = [spoken(more) for more in dict(row["additional_answers"] or {}).values() if more]
        for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            accepted = [answer] if isinstance(answer, str) else list(answer)
            accepted += [more[turn] for more in others if turn < len(more)]
            values = {"passage": row["passage"], "question": question, "answers": accepted}
            turns.append(Row(values, f"{row.place} turn {turn + 1}"))
    return with_earlier(turns, lambda row: row["answers"][0])


def spoken(value: Any) -> list[Any]:
    """The texts of CoQA's turns: strings, objects with `input_text`, or one object with a list of them."""
    if isinstance(value, Mapping):
        value = value["input_text"]
    if isinstance(value, str):
        return [value]
    return [turn["input_text"] if isinstance(turn, Mapping) else turn for turn in value]


def race(rows: list[Row]) -> list[Row]:
    """Articles with questions of four options: one question a row, or an article with lists of them."""
    found = []
    for row in rows:
        several = isinstance(row["question"], list)
        columns = (row["question"], row["choices"], row["answer"])
        asked = zip(*columns, strict=True) if several else [columns]
        for question, choices, answer in asked:
            gold = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else -1
            if not 0 <= gold < len(choices):
                raise InputError(
                    f"{row.place} has the answer {answer!r}: it is a letter, from A on, of {len(choices)} options."
                )
            values = {"passage": row["passage"], "question": question, "choices": list(choices), "gold": gold}
            found.append(Row(values, row.place))
    return with_earlier(found, lambda row: row["choices"][row["gold"]])


def lettered_choices(rows: list[Row]) -> list[Row]:
    """Questions of ARC and OpenBookQA: choices with labels (A to E, or 1 to 5), of which one is the answer."""
    found = []
    for row in rows:
        question, choices = row["question"], row["choices"]
        if isinstance(question, Mapping):  # the publisher's own files
            question, choices = question["stem"], question["choices"]
        if isinstance(choices, Mapping):  # the hub's
            labels, texts = list(choices["label"]), list(choices["text"])
        elif choices and isinstance(choices[0], Mapping):
            labels, texts = [choice["label"] for choice in choices], [choice["text"] for choice in choices]
        elif choices:
            labels, texts = list(LETTERS[: len(choices)]), list(choices)
        else:
            raise InputError(f"{row.place} has no choices: give a list of texts, or of labels and texts.")
        answer = str(row["answer"]).strip()
        if answer not in labels:
            raise InputError(
                f"{row.place} has the answer {answer!r}, which is none of {', '.join(labels)}: correct it."
            )
        found.append(Row({"question": question, "choices": texts, "gold": labels.index(answer)}, row.place))
    return found


def hellaswag(rows: list[Row]) -> list[Row]:
    """Endings of a passage, without the marks that WikiHow's pages left in it."""
    found = []
    for row in rows:
        if not isinstance(row["choices"], list):
            raise InputError(f"{row.place} has {row['choices']!r} for its endings: give a list of texts.")
        second = row["ctx_b"].strip()
        text = f"{row['activity']}: {row['ctx_a']} {second[:1].upper()}{second[1:]}"
        choices = [without_marks(ending) for ending in row["choices"]]
        found.append(Row({"passage": without_marks(text), "choices": choices, "gold": row["gold"]}, row.place))
    return found


def without_marks(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def copa(rows: list[Row]) -> list[Row]:
    """Premises that a connective joins to one of two continuations."""
    found = []
    for row in rows:
        asked = str(row["question"]).strip().lower()
        if asked not in CONNECTIVES:
            raise InputError(f"{row.place} asks for {row['question']!r}: it is cause or effect.")
        premise = row["premise"].strip().rstrip(".")
        choices = [continued(row[choice].strip()) for choice in ("choice1", "choice2")]
        values = {"premise": row["premise"], "context": f"{premise} {CONNECTIVES[asked]}", "choices": choices}
        found.append(Row({**values, "gold": row["gold"]}, row.place))
    return found


def continued(sentence: str) -> str:
    """A sentence as the second half of another."""
    first = re.split(r"\W", sentence, maxsplit=1)[0]
    return sentence if first == "I" else sentence[:1].lower() + sentence[1:]


def last_word(rows: list[Row]) -> list[Row]:
    """Passages of LAMBADA, cut before their last word."""
    found = []
    for row in rows:
        passage, space, word = row["text"].strip().rpartition(" ")
        if not space:
            raise InputError(f"{row.place} has a single word: give a passage, whose last word is asked for.")
        found.append(Row({"passage": passage, "word": word}, row.place))
    return found


def filled_blanks(rows: list[Row]) -> list[Row]:
    """Sentences of Winogrande with each option in their blank, cut after it: what follows is scored (section 3.5)."""
    found = []
    for row in rows:
        before, blank, after = row["sentence"].partition("_")
        if not blank or not after.strip():
            raise InputError(
                f"{row.place} has the sentence {row['sentence']!r}: it needs a blank (_), and text after it."
            )
        contexts = [before + row[option] for option in ("option1", "option2")]
        values = {"sentence": row["sentence"], "contexts": contexts, "completion": after.strip(), "gold": row["gold"]}
        found.append(Row(values, row.place))
    return found


ARRANGEMENTS: dict[str, Callable[[list[Row]], list[Row]]] = {
    "squad": squad,
    "coqa": coqa,
    "race": race,
    "lettered_choices": lettered_choices,
    "hellaswag": hellaswag,
    "copa": copa,
    "last_word": last_word,
    "filled_blanks": filled_blanks,
}
