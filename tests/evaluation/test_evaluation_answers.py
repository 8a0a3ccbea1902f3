"""Answers are marked as by hand, and as the harness's libraries mark them."""

import pytest
import sacrebleu
from lm_eval.tasks.qasper import metrics as qasper

from pipeline.evaluation import answers, translation_scores


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Beatles!", "beatles"),
        ("  an  apple, a pear ", "apple pear"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),  # begins with an article's letters
        ("A", ""),
        ("state-of-the-art", "stateoftheart"),
        ("L'été", "lété"),
    ],
)
def test_case_articles_punctuation_and_spaces_do_not_count(text, normal):
    assert answers.normalised(text) == normal


def test_trivia_answers_fall_apart_at_punctuation_of_every_kind():
    assert answers.normalised_as_trivia("Spider-Man’s ‘web’") == "spider man s web"
    assert answers.normalised("Spider-Man") == "spiderman"


@pytest.mark.parametrize(
    ("answer", "accepted", "f1", "exact"),
    [
        ("the cat sat", ["a cat sat down"], 2 * 1 * (2 / 3) / (1 + 2 / 3), 0),  # 2 of 2 words, 2 of 3
        ("The cat.", ["cat"], 1, 1),
        ("cat cat dog", ["cat dog dog"], 2 / 3, 0),  # cat and dog once each of 3 and 3
        ("in 1802", ["1802", "in 1802"], 1, 1),
        ("red", ["blue", "green"], 0, 0),
        ("", ["blue"], 0, 0),
        ("the", ["blue"], 0, 0),  # nothing is left of it
    ],
)
def test_f1_and_exact_match_are_those_of_a_hand_calculation(answer, accepted, f1, exact):
    marks = answers.passage_answer({"answers": accepted}, [answer])
    assert marks == {"f1": pytest.approx(f1), "exact_match": exact}


@pytest.mark.parametrize(
    ("answer", "accepted", "mark"),
    [("N/A", ["N/A"], 1), ("n/a.", ["N/A"], 1), ("", ["N/A"], 1), ("1802", ["N/A"], 0), ("N/A", ["1802"], 0)],
)
def test_a_question_without_an_answer_wants_none(answer, accepted, mark):
    assert answers.passage_answer({"answers": accepted}, [answer]) == {"f1": mark, "exact_match": mark}


def test_any_alias_is_right_and_only_the_first_line_counts():
    doc = {"answers": ["Mercury", "planet Mercury"]}
    assert answers.short_answer(doc, [" the planet mercury.\nQ: and then?"]) == {"exact_match": 1}
    assert answers.short_answer(doc, ["Mercury and Venus"]) == {"exact_match": 0}
    assert answers.trivia_answer({"answers": ["Spider Man"]}, ["Spider-Man"]) == {"exact_match": 1}


def test_marks_agree_with_those_of_the_harnesss_qasper_task():
    pairs = [
        ("the cat sat", "a cat sat down"),
        ("N.A.S.A.", "nasa"),
        ("an old, old man", "the old man"),
        ("x", "y"),
        ("", "y"),
    ]
    for answer, gold in pairs:
        assert answers.normalised(answer) == qasper.normalize_answer(answer)
        assert answers.f1(answer, [gold]) == pytest.approx(qasper.f1_abstractive([answer], [gold]))


REFERENCES = ["La porte est ouverte.", "Le chat dort sur le lit.", "Nous mangeons du pain.", "Oui.", "x", ""]
WRITTEN = ["La porte est fermée.", "Le chat dort sur le lit.", "Nous pain", "Oui, oui, oui et non !", "", "tout"]


@pytest.mark.parametrize("chosen", [range(6), [0], [1, 1, 2], [3, 4], [4], [5], [1]])
def test_bleu_and_chrf_from_counts_are_sacrebleus_of_the_whole_set(chosen):
    references, lines = [REFERENCES[i] for i in chosen], [WRITTEN[i] for i in chosen]
    marks = [
        translation_scores.marks({"target": target}, [f" {text}\nand so on"])
        for target, text in zip(references, lines, strict=True)
    ]
    bleu = translation_scores.bleu([mark["bleu"] for mark in marks])
    chrf = translation_scores.chrf([mark["chrf"] for mark in marks])
    assert bleu == pytest.approx(sacrebleu.corpus_bleu(lines, [references]).score)
    assert chrf == pytest.approx(sacrebleu.corpus_chrf(lines, [references]).score)


def test_bleu_of_two_sentences_is_that_of_a_hand_calculation():
    pairs = [("the cat sat on the mat", "the cat sat on a mat"), ("we eat bread now", "we eat bread now")]
    marks = [translation_scores.marks({"target": reference}, [text])["bleu"] for text, reference in pairs]
    # 9 of 10 words, 6 of 8 pairs, 4 of 6 triples, 2 of 4 runs of four; both sides 10 words long.
    by_hand = 100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** (1 / 4)
    assert translation_scores.bleu(marks) == pytest.approx(by_hand)


def test_scores_are_signed_by_what_they_depend_on():
    signatures = translation_scores.signatures()
    assert signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
