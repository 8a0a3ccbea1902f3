"""What a run had read, against the same worked out a word at a time from the documents and steps that `inspect` names."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from evaluation.runs_that_read import (
    BATCH,
    SENTENCE,
    STEPS,
    N,
    at,
    compare,
    make_run,
    ngrams_by_hand,
    parsed,
    read_by_hand,
    save,
    texts,
    write_corpus,
    write_shards,
)

from data_prep.files import write_json
from pipeline.evaluation import ngram_table, trained_text
from pipeline.evaluation.contamination import Contamination, choose_n, example_text
from pipeline.evaluation.ngram_table import Table

MIXTURE = {"prose": {"weight": 0.7}, "verse": {"weight": 0.3}}
CASES = {
    "windows": ("library", {}),
    "epochs": ("small_library", {}),
    "streams": ("library", {"order": "stream"}),
    "mixture": ("library", {"mixture": MIXTURE}),
    "ramp": ("library", {"batch_ramp": {"start_tokens": 64, "over_tokens": 16 * BATCH}}),
    "contexts": ("library", {"context_schedule": {0: 8, 6 * BATCH: 16, 14 * BATCH: 32}}),
    "pairs": ("pairs_of_words", {"order": "pairs"}),
    "pairs read as text": ("pairs_of_words", {}),
    "words": ("library_by_words", {}),
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: write_corpus(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("case", [*CASES, "windows at once"])
def test_an_ngram_is_found_from_just_the_step_that_completed_it(case, corpora, tmp_path, monkeypatch):
    case, _, at_once = case.partition(" at ")
    monkeypatch.setattr(trained_text, "STRETCH", 1 << 18 if at_once else 53)
    monkeypatch.setattr(ngram_table, "PART", 1000)
    corpus, settings = CASES[case]
    run = make_run(tmp_path / "run", corpora(corpus), STEPS, settings)
    expected = ngrams_by_hand(run, read_by_hand(run, STEPS))
    for step in (1, 11, STEPS):
        save(run, step)
    compare(Contamination(at(run, 11)), expected, 11)
    marks = compare(Contamination(at(run, STEPS)), expected, STEPS)
    assert sum(mark.dirty is True for mark in marks) > 0
    if case != "epochs":
        assert any(not mark.dirty for mark in marks), "some of the corpus is not read"
    compare(Contamination(at(run, 1)), expected, 1)
    assert len([*(run / "evaluation" / "ngrams").glob("*/steps-*")]) == 1, "one index is good for all checkpoints"
    whole = len(Contamination(at(run, STEPS)).index(N)[0])
    assert whole == sum(step is not None for step in expected.values())


@pytest.mark.parametrize("case", ["windows", "pairs", "contexts"])
def test_a_run_that_went_on_gets_what_it_read_since(case, corpora, tmp_path):
    corpus, settings = CASES[case]
    run = make_run(tmp_path / "run", corpora(corpus), 7, settings)
    save(run, 7)
    contamination = Contamination(at(run, 7))
    contamination.marks(["nothing"], N)
    save(run, 19)
    save(run, STEPS)
    expected = ngrams_by_hand(run, read_by_hand(run, STEPS))
    compare(Contamination(at(run, 19)), expected, 19)
    compare(Contamination(at(run, 7)), expected, 7)
    assert len([*(run / "evaluation" / "ngrams").glob("*/steps-*")]) == 2


def test_steps_that_changed_nothing_have_read_nothing(corpora, tmp_path):
    run = make_run(tmp_path / "run", corpora("library"), STEPS)
    save(run, 10)
    save(run, STEPS, skipped=[[3, 3], [12, 20]])
    left_out = [3, *range(12, 21)]
    compare(Contamination(at(run, STEPS)), ngrams_by_hand(run, read_by_hand(run, STEPS, left_out)), STEPS)
    # A checkpoint from before it was decided to leave step 3 out had read it.
    compare(Contamination(at(run, 10)), ngrams_by_hand(run, read_by_hand(run, 10)), 10)
    assert len([*(run / "evaluation" / "ngrams").glob("*/steps-*")]) == 2


def test_batches_that_changed_in_the_middle_are_told_from_one_another(corpora, tmp_path):
    run = make_run(tmp_path / "run", corpora("library"), 10)
    earlier = json.loads(json.dumps(parsed(run).identity()))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"batch_tokens": 96, "allow_changes": ["batch_tokens"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    data = parsed(run)
    write_json(run / "run.json", {"format": 1, "name": "run", "data": {"path": str(data.path), **data.identity()}})
    data.setup("fit")
    data.go_on_from({"data": earlier, "step": 10})
    save(run, 22, batches=data.batches.history())
    expected = ngrams_by_hand(run, read_by_hand(run, 22))
    compare(Contamination(at(run, 22)), expected, 22)
    compare(Contamination(at(run, 10)), expected, 10)


def test_what_was_read_in_an_order_that_is_not_known_is_not_called_clean(corpora, tmp_path):
    run = make_run(tmp_path / "run", corpora("library"), 10)
    save(run, STEPS, order_since=12)
    contamination = Contamination(at(run, STEPS))
    expected = ngrams_by_hand(run, read_by_hand(run, STEPS))
    seen, unseen = (next(g for g, step in expected.items() if (step is None) == none) for none in (False, True))
    marks = contamination.marks([seen, unseen, "too short"], N)
    assert [mark.dirty for mark in marks] == [True, None, False]
    assert "first 12 steps" in str(contamination.unknown)


def test_weights_from_another_run_bring_what_that_had_read(corpora, tmp_path):
    before = make_run(tmp_path / "before", corpora("library"), STEPS)
    shutil.copy(before / "checkpoints" / "last.ckpt", before / "checkpoints" / "best.ckpt")
    run = make_run(tmp_path / "run", corpora("library"), 2, {"seed": 5}, pretrained=before)
    own, theirs = (ngrams_by_hand(folder, read_by_hand(folder, steps)) for folder, steps in ((run, 2), (before, STEPS)))
    only_theirs = next(gram for gram, step in theirs.items() if step and not own[gram])
    both = next(gram for gram, step in own.items() if step)
    contamination = Contamination(at(run, 2))
    assert contamination.unknown is None
    marks = contamination.marks([only_theirs, both], N)
    assert (marks[0].run, marks[0].step) == (str(before), theirs[only_theirs])
    assert (marks[1].run, marks[1].step) == (None, own[both])
    shutil.rmtree(before)
    contamination = Contamination(at(run, 2))
    assert str(before) in str(contamination.unknown)
    assert [mark.dirty for mark in contamination.marks([only_theirs, both], N)] == [None, True]


@pytest.mark.parametrize(
    ("question", "dirty"),
    [
        ("in the beginning the quick brown foxs friend", True),
        ("a lazy dog and slept until tuesday and more", False),
        ("jumped over a lazy dog and slept until Tuesday", True),
        ("IN THE BEGINNING!!! (the quick) 'brown' fox's -- friend?", True),
        ("in the beginning the quick brown foxs enemy", False),
        ("in the beginning the quick brown foxs", False),
        ("n the beginning the quick brown foxs friend jumpe", False),
        ("We ask: jumped over a lazy dog - and slept until Tuesday? Yes.", True),
        ("until tuesday second document one two three four", False),
        ("", False),
    ],
)
def test_the_first_and_the_last_words_collide_and_nothing_less_than_n(question, dirty, tmp_path):
    documents = [SENTENCE, "Second document: one two three four", *texts(40)]
    run = make_run(tmp_path / "run", write_shards(tmp_path / "tokens", {"own": documents}, vocab_size=300), STEPS)
    [mark] = Contamination(at(run, STEPS)).marks([question], N)
    assert mark.dirty is dirty
    assert mark.short == (len(question.split()) < N)
    if dirty:
        assert mark.document == "0"
        assert mark.ngram is not None
        assert mark.ngram in SENTENCE.lower().replace(",", "").replace("'", "").replace(" -", "").replace(".", "")


def test_a_document_has_its_id_where_its_parquet_is_at_hand(tmp_path):
    import pyarrow as pa

    from data_prep.document import DocumentWriter

    documents = [SENTENCE, *texts(40)]
    run = make_run(tmp_path / "run", write_shards(tmp_path / "tokens", {"own": documents}, vocab_size=300), STEPS)
    with DocumentWriter(tmp_path / "split" / "train", "own") as parquet:
        parquet.add(pa.record_batch({"id": [f"page/{k}" for k in range(41)], "text": documents}))
    [mark] = Contamination(at(run, STEPS)).marks([SENTENCE], N)
    assert mark.document == "page/0"


def test_equal_hashes_of_other_words_make_no_example_dirty(corpora, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", corpora("library"), STEPS)
    contamination = Contamination(at(run, STEPS))
    contamination.index(N)
    hashes = Table(next((run / "evaluation" / "ngrams").glob("*/steps-*"))).column("hashes")
    monkeypatch.setattr("pipeline.evaluation.contamination.ngram_hashes", lambda words, n: np.array(hashes[:3]))
    assert [mark.dirty for mark in contamination.marks([" ".join("abcdefgh")], N)] == [False]


def test_words_in_which_all_questions_are_asked_are_not_theirs(tmp_path):
    """A prompt that stands in the training text makes no question dirty that does not."""
    form = "Please answer this question about the animals of the forest with one word: {} says what?"
    documents = [form.format("anything"), "the owl of the old northern wood sleeps by the river", *texts(10)]
    run = make_run(tmp_path / "run", write_shards(tmp_path / "tokens", {"own": documents}, vocab_size=300), STEPS)
    questions = [
        form.format(name) for name in ["the fox", "the owl of the old northern wood", "a cat", "some dog", "no bee"]
    ]
    contamination = Contamination(at(run, STEPS))
    assert all(mark.dirty for mark in contamination.marks(questions, N)), "of a few questions nobody can tell"
    marks = contamination.marks([*questions, *[form.format(f"beast {k}") for k in range(9)]], N)
    assert [mark.dirty for mark in marks] == [False] * 14
    [mark] = contamination.marks(["the owl of the old northern wood sleeps"], N)
    assert mark.dirty


def test_n_is_the_fifth_percentile_within_bounds():
    def of(*lengths: int) -> int:
        return choose_n(["word " * length for length in lengths])

    assert (
        of(*range(5, 105)) == 9
    )  # Of 100 lengths from 5 on, 5 % lie below the one at 0.05 x 99 = 4.95: the 4th from 0 is 9.
    assert of(10) == 10
    assert of(*[2] * 4, *[11] * 96) == 11
    assert of(*[2] * 6, *[11] * 94) == 8
    assert of(400, 500) == 13
    assert choose_n(["a - b c d e f g h i j, k"] * 3) == 11, "punctuation is no word"
    with pytest.raises(ValueError, match="no example"):
        choose_n([])


class FakeTask:
    """The parts of a harness task that make up an example."""

    def __init__(self, text: Any, target: Any, choices: list | None = None, query: str | None = None):
        self.text, self.target, self.choices, self.query = text, target, choices, query
        self.config = SimpleNamespace(doc_to_choice=None if choices is None else "choices")

    def doc_to_text(self, document: dict) -> Any:
        return self.text

    def doc_to_target(self, document: dict) -> Any:
        return self.target

    def doc_to_choice(self, document: dict) -> Any:
        return self.choices

    def should_decontaminate(self) -> bool:
        return self.query is not None

    def doc_to_decontamination_query(self, document: dict) -> Any:
        return self.query


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (FakeTask("Q: two?\nA:", "2"), "Q: two?\nA:\n2"),
        (FakeTask("The sky is", 1, ["green", "blue"]), "The sky is\nblue"),
        (FakeTask("The sky is", [0, 1], ["grey", "blue"]), "The sky is\ngrey\nblue"),
        (FakeTask("Who?", ["Ann", "Ann Lee"]), "Who?\nAnn\nAnn Lee"),
        (FakeTask(1, " was small.", ["The box", "The ball"]), "The ball\n was small."),
        (FakeTask("Question: Why? Answer:", "so", query="Why?"), "Why?\nso"),
        (FakeTask("", "a whole text"), "\na whole text"),
    ],
)
def test_an_example_is_its_question_and_its_right_answers(task, text):
    assert example_text(task, {}) == text
