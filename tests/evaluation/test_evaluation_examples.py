"""The shipped examples are right, seeded, and never shared between prompts and test."""

import re
from collections import Counter
from random import Random

import pytest

from data_prep.files import InputError
from pipeline.evaluation import examples
from pipeline.evaluation.tasks import SHIPPED


def words() -> list[str]:
    return (SHIPPED / "words.txt").read_text().split()


def unscramble(**options):
    manipulations = ["cycle_letters", "random_insertion"]
    return examples.unscramble(manipulations, words="words.txt", config_source=str(SHIPPED / "a_task.yaml"), **options)


def test_arithmetic_answers_are_right():
    for row in examples.arithmetic(["plus", "minus"])["test"]:
        a, operation, b = re.fullmatch(r"What is (\d\d?) (plus|minus) (\d\d?)\?", row["question"]).groups()
        assert row["answer"] == str(int(a) + int(b) if operation == "plus" else int(a) - int(b))


@pytest.mark.parametrize("digits", [2, 3, 4, 5])
def test_numbers_have_the_digits_that_are_asked_for_and_answers_are_right(digits):
    calculate = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    rows = examples.arithmetic(list(calculate), digits=digits)["test"].to_list()
    largest = 0
    for row in rows:
        a, operation, b = re.fullmatch(r"What is (\d+) (\w+) (\d+)\?", row["question"]).groups()
        assert row["answer"] == str(calculate[operation](int(a), int(b)))
        largest = max(largest, int(a), int(b))
    assert 0.9 * 10**digits < largest < 10**digits
    assert len({row["question"] for row in rows}) == 200


def test_composite_problems_bracket_the_last_two_numbers_and_are_answered_right():
    parts = examples.composite()
    for row in [*parts["test"], *parts["fewshot"]]:
        problem = re.fullmatch(r"What is (\d[-+*]\(\d[-+*]\d\))\?", row["question"])[1]
        assert row["answer"] == str(eval(problem))
    assert not set(parts["test"]["question"]) & set(parts["fewshot"]["question"])


@pytest.mark.parametrize(("manipulation", "kept"), [("anagram_1", 1), ("anagram_2", 2)])
def test_an_anagram_keeps_its_ends_and_is_another_word(manipulation, kept):
    for row in examples.unscramble([manipulation], words="words.txt", config_source=str(SHIPPED / "a_task.yaml"))[
        "test"
    ]:
        scrambled, answer = row["scrambled"], row["answer"]
        assert (scrambled[:kept], scrambled[-kept:]) == (answer[:kept], answer[-kept:])
        assert Counter(scrambled) == Counter(answer)
        assert scrambled != answer


def test_reversed_words_read_backwards_and_no_palindrome_is_asked():
    parts = examples.unscramble(["reversed"], words="words.txt", config_source=str(SHIPPED / "a_task.yaml"))
    for row in [*parts["test"], *parts["fewshot"]]:
        assert row["scrambled"] == row["answer"][::-1] != row["answer"]


def test_too_few_words_for_the_questions_are_refused(tmp_path):
    (tmp_path / "few.txt").write_text("level alpha gamma delta omega")
    with pytest.raises(InputError, match="few.txt has 4 words to scramble, the task takes 5"):
        examples.unscramble(["reversed"], words="few.txt", config_source=str(tmp_path / "task.yaml"), test=4, fewshot=1)


def test_scrambled_words_hold_the_letters_of_their_answer():
    for row in unscramble()["test"]:
        letters = re.sub(r"[.!/ ]", "", row["scrambled"])
        assert Counter(letters) == Counter(row["answer"])
        assert row["scrambled"] != row["answer"]


def test_cycled_letters_are_a_rotation():
    for seed in range(20):
        assert examples.cycle_letters("inevitably", Random(seed)) in "inevitablyinevitably"


def test_an_insertion_stands_after_each_letter_but_the_last():
    assert re.fullmatch(r"s[.!/ ]u[.!/ ]m", examples.insert_between_letters("sum", Random(0)))


def test_a_last_word_occurs_earlier_in_its_passage(documents):
    rows = examples.last_word(documents=str(documents))["test"]
    assert len(rows) >= 20
    for row in rows:
        assert re.search(rf"\b{row['answer']}\b", row["passage"])
        assert all(re.search(rf"\b{choice}\b", row["passage"]) for choice in row["choices"])


def test_passages_are_text_of_their_split_as_it_was_written(documents):
    import pyarrow.parquet

    held_out = pyarrow.parquet.read_table(documents / "test").column("text").to_pylist()
    for row in examples.last_word(documents=str(documents))["test"]:
        assert any(f"{row['passage']} {row['answer']}." in text for text in held_out)


@pytest.mark.parametrize("kind", ["arithmetic", "unscramble", "last_word"])
class TestEveryKind:
    def make(self, kind, documents, seed=0):
        if kind == "arithmetic":
            return examples.arithmetic(["plus", "minus"], seed=seed)
        return (
            unscramble(seed=seed) if kind == "unscramble" else examples.last_word(documents=str(documents), seed=seed)
        )

    def test_the_same_seed_gives_the_same_examples(self, kind, documents):
        first, again, other = (self.make(kind, documents, seed)["test"].to_list() for seed in (0, 0, 1))
        assert first == again != other

    def test_no_test_example_can_be_drawn_into_a_prompt(self, kind, documents):
        made = self.make(kind, documents)
        question = {"arithmetic": "question", "unscramble": "answer", "last_word": "passage"}[kind]
        assert made["fewshot"].num_rows > 0
        assert not set(made["fewshot"][question]) & set(made["test"][question])

    def test_choices_are_four_different_ones_in_an_order_that_tells_nothing(self, kind, documents):
        rows = self.make(kind, documents)["test"].to_list()
        for row in rows:
            assert len(set(row["choices"])) == 4
            assert row["choices"][row["gold"]] == row["answer"]
        assert set(Counter(row["gold"] for row in rows)) == {0, 1, 2, 3}


def test_arithmetic_and_unscramble_choices_are_equally_long():
    rows = [*examples.arithmetic(["plus", "minus"])["test"], *unscramble()["test"]]
    assert all(len({len(choice) for choice in row["choices"]}) == 1 for row in rows)


def test_the_word_list_holds_plain_words_once():
    assert len(set(words())) == len(words())
    assert all(re.fullmatch("[a-z]{5,10}", word) for word in words())


def test_without_documents_the_last_word_tasks_say_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="run data_prep"):
        examples.last_word(documents=str(tmp_path))
    with pytest.raises(InputError, match="need a corpus"):
        examples.last_word()


def test_a_word_that_has_no_rivals_is_refused(tmp_path):
    (tmp_path / "few.txt").write_text("alpha gamma delta omega extraordinary")
    with pytest.raises(InputError, match="fewer than 4 words as long as 'extraordinary'"):
        examples.unscramble(
            ["cycle_letters"], words="few.txt", config_source=str(tmp_path / "task.yaml"), test=4, fewshot=1
        )
