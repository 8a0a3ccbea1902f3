"""Files of every form that questions are published in are read, divided and checked row by row."""

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.files import InputError
from pipeline.evaluation import task_files, tasks
from pipeline.evaluation.file_rows import Headers
from pipeline.evaluation.task_files import read_rows

FIXTURES = Path(__file__).parent / "fixtures"
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ROWS = [{"question": "who, then?", "answers": ["a", "b"]}, {"question": "what\u2028now?", "answers": ["c"]}]
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not at hand")


def test_a_list_of_objects_reads_the_same_from_every_form(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "d.json").write_text(json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}))
    (tmp_path / "e.json").write_text(lines)
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "g.txt").write_text(lines)
    (tmp_path / "h.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode() + b"\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "i.parquet")
    with zipfile.ZipFile(tmp_path / "j.zip", "w") as archive:
        archive.writestr("set/rows.jsonl", lines)
        archive.writestr("set/README.md", "about it")
    for file in sorted(tmp_path.iterdir()):
        rows = [{key: row[key] for key in ROWS[0]} for row in read_rows(file)]
        assert rows == ROWS, file.name
    assert [row["file"] for row in read_rows(tmp_path / "j.zip")] == ["set/rows.jsonl"] * 2


def test_tables_are_read_with_their_header_or_by_their_layout(tmp_path):
    (tmp_path / "a.csv").write_text('premise,label\n"one, two\nthree",1\n\nfour,2\n')
    assert read_rows(tmp_path / "a.csv") == [
        {"premise": "one, two\nthree", "label": "1"},
        {"premise": "four", "label": "2"},
    ]
    (tmp_path / "b.tsv").write_text('He said "no.\tIl dit "non.\n')
    layouts = Headers([["en", "fr"], ["file", "en", "fr"]], {"english"})
    assert read_rows(tmp_path / "b.tsv", headers=layouts) == [{"en": 'He said "no.', "fr": 'Il dit "non.'}]
    (tmp_path / "c.tsv").write_text("English\tFrench\nyes\toui\n")
    assert read_rows(tmp_path / "c.tsv", headers=layouts) == [{"English": "yes", "French": "oui"}]


def test_copa_reads_as_the_hubs_copy_does():
    rows = read_rows(FIXTURES / "copa.xml")
    assert rows[1] == {
        "premise": "The boy dropped his ice cream.", "choice1": "He laughed at noon.", "choice2": "He began to cry.",
        "question": "effect", "label": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": \n', "a.jsonl line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1 is [1], not an object"),
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", "[1]", "item 1 is 1, not an object"),
        ("a.json", '"text"', "holds str, not a list"),
        ("a.csv", "q,a\n1,2\n1,2,3\n", "line 3 has 3 cells, not 2 (q, a)"),
        ("a.xml", "<a>", "not valid XML"),
        ("a.xml", "<a></a>", "only COPA's form"),
        ("a.xml", '<a><item id="7"/></a>', "item 7 has most-plausible-alternative ''"),
        ("a.zip", "none", "cannot be read (BadZipFile"),
        ("a.jsonl.gz", "none", "cannot be read (BadGzipFile"),
        ("a.parquet", "none", "cannot be read (ArrowInvalid"),
        ("b.jsonl", None, "b.jsonl does not exist"),
    ],
)
def test_a_damaged_file_is_named_with_the_line(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        read_rows(tmp_path / name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def questions(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(test: Path, examples: Path | None = None, **options):
    options = {
        "columns": {"question": ["qText"], "answers": ["answer"]},
        "lists": ["answers"],
        "key": "question",
        **options,
    }
    files = {"test": test, **({"fewshot": examples} if examples else {})}
    return task_files.dataset(name="own", data={"own": files}, **options)


def test_one_file_is_divided_by_content_whatever_its_order(tmp_path):
    rows = [{"question": f"question {i}", "answers": [str(i)]} for i in range(50)]
    parts = made(questions(tmp_path / "a.jsonl", rows))
    again = made(questions(tmp_path / "b.jsonl", rows[::-1]))
    fewshot, test = set(parts["fewshot"]["question"]), parts["test"]["question"]
    assert (len(fewshot), len(test)) == (10, 40)
    assert fewshot == set(again["fewshot"]["question"])
    assert not fewshot & set(test)
    assert list(test) == [row["question"] for row in rows if row["question"] not in fewshot]
    assert len(made(tmp_path / "a.jsonl", fewshot=3)["fewshot"]) == 3


def test_a_repeated_question_stays_on_one_side(tmp_path):
    rows = [
        {"question": f"Question {i % 20}?" if i < 20 else f"question  {i % 20}?", "answers": [str(i)]}
        for i in range(60)
    ]
    parts = made(questions(tmp_path / "a.jsonl", rows))
    sides = [{" ".join(text.lower().split()) for text in parts[part]["question"]} for part in ("test", "fewshot")]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 4  # three rows each, of 12 at most


def test_a_file_sorted_by_label_is_not_asked_in_its_order(tmp_path):
    columns = {"question": [], "gold": ["label"]}
    labels = {"gold": [["no"], ["yes"]]}
    rows = [{"question": f"{i}?", "label": "no" if i < 50 else "yes"} for i in range(100)]
    sorted_file = made(questions(tmp_path / "a.jsonl", rows), columns=columns, lists=[], labels=labels)["test"]
    assert 5 < sum(sorted_file["gold"][:20]) < 15
    mixed = [row for pair in zip(rows[:50], rows[50:], strict=True) for row in pair]
    mixed_file = made(questions(tmp_path / "b.jsonl", mixed), columns=columns, lists=[], labels=labels)["test"]
    order = [row["question"] for row in mixed]
    assert list(mixed_file["question"]) == sorted(mixed_file["question"], key=order.index)
    assert set(sorted_file["question"]) == set(mixed_file["question"])


def test_examples_of_another_file_are_not_scored_as_well(tmp_path):
    test = questions(tmp_path / "t.jsonl", [{"question": f"{i}?", "answers": ["x"]} for i in range(4)])
    fewshot = questions(tmp_path / "f.jsonl", [{"question": f"{i}?", "answers": ["x"]} for i in range(3, 6)])
    parts = made(test, fewshot)
    assert list(parts["fewshot"]["question"]) == ["4?", "5?"]
    assert len(parts["test"]) == 4
    assert task_files.remarks(parts["test"]) == "1 examples whose question is scored"
    with pytest.raises(InputError, match="Each example of 'own' is scored as well"):
        made(test, test)


def test_publishers_names_labels_and_lists_become_the_tasks(tmp_path):
    rows = [
        {"QTEXT": "a?", "answer": "one", "gold_label": "entailment"},
        {"question": "b?", "answers": {"text": ["two", "two", ""]}, "label": 1.0},
        {"qText": "c?", "answer": {"value": "3", "aliases": ["three", "3"]}, "label": "NEUTRAL"},
        {"qText": "d?", "answer": "['four', '4']", "label": 0},
        {"qText": "e?", "answer": [], "label": 0},
        {"qText": " ", "answer": "six", "label": 0},
        {"qText": "g?", "answer": "seven", "label": -1},
        {"qText": "h?", "answer": "eight", "label": "-"},
    ]
    columns = {"question": ["qText"], "answers": ["answer"], "gold": ["label", "gold_label"]}
    labels = {"gold": [["entailment", 0], ["neutral", 1]]}
    test = made(questions(tmp_path / "a.jsonl", rows), columns=columns, labels=labels, fewshot=0)["test"]
    assert test.to_list() == [
        {"question": "a?", "answers": ["one"], "gold": 0}, {"question": "b?", "answers": ["two"], "gold": 1},
        {"question": "c?", "answers": ["3", "three"], "gold": 1}, {"question": "d?", "answers": ["four", "4"], "gold": 0},
    ]  # fmt: skip
    assert Counter(task_files.remarks(test).split(", ")) == Counter(
        ["1 without answers", "1 without question", "2 without a label"]
    )


def test_a_publisher_who_counts_from_one_is_understood_by_the_columns_name(tmp_path):
    (tmp_path / "a.csv").write_text(
        "premise,choice1,choice2,question,most-plausible-alternative\nIt fell.,It was loose.,It flew.,cause,1\n"
    )
    (tmp_path / "b.csv").write_text("premise,choice1,choice2,question,label\nIt fell.,It was loose.,It flew.,cause,1\n")
    gold = []
    for file in (tmp_path / "a.csv", tmp_path / "b.csv"):
        manager, _ = tasks.find(["gpt3_copa"], None, {"data": {"gpt3_copa": str(file)}})
        gold.append(tasks.load(manager, "gpt3_copa")["tasks"]["gpt3_copa"].eval_docs[0]["gold"])
    assert gold == [0, 1]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"q": "a?", "answer": "x"}],
            "line 1 has no question or qText, which task 'own' reads as question; it has q, answer",
        ),
        ([{"question": "a?", "answer": "x"}, {"question": "b?"}], "line 2 has no answers or answer"),
        ([{"question": "a?", "answer": {"index": 1}}], "line 1 has answers with index: give a list of texts"),
        ([{"question": ["a?"], "answer": "x"}], "line 1 has question of several parts"),
        (
            [{"question": "", "answer": "x"}],
            "holds no question for 'own' (1 without question): see its columns question, answers",
        ),
        ([], "holds no question for 'own'"),
    ],
)
def test_a_file_with_other_columns_is_refused_with_the_way_out(tmp_path, rows, sentence):
    with pytest.raises(InputError) as error:
        made(questions(tmp_path / "a.jsonl", rows))
    assert sentence in str(error.value)
    assert str(tmp_path / "a.jsonl") in str(error.value)


def test_a_label_that_nobody_declared_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text("premise,hypothesis,label\na,b,neutral\na,c,perhaps\n")
    manager, _ = tasks.find(["snli"], None, {"data": {"snli": str(tmp_path / "a.csv")}})
    with pytest.raises(
        InputError, match=r"a\.csv line 3 has label 'perhaps', which is none of entailment or 0 or e; neutral"
    ):
        tasks.load(manager, "snli")


def test_files_beside_a_yaml_are_read_relative_to_it(tmp_path):
    questions(tmp_path / "t.jsonl", [{"question": "a?", "answers": "x"}])
    parts = task_files.dataset(name="own", files={"test": "t.jsonl"}, config_source=str(tmp_path / "own.yaml"))
    assert parts["test"].to_list() == [{"question": "a?", "answers": "x"}]


# Publishers' own layouts, and those of the hub's copies: one question each, as its task asks it.
LAYOUTS = {
    "gpt3_triviaqa": (
        {"Question": "Who?", "Answer": {"Value": "Ada", "Aliases": ["Ada L."], "NormalizedAliases": ["ada l"]}},
        {"question": "Who?", "answers": ["Ada", "Ada L."]},
    ),
    "gpt3_squadv2": (
        {"title": "T", "context": "C", "question": "Q?", "answers": {"text": [], "answer_start": []}},
        {"title": "T", "passage": "C", "question": "Q?", "answers": ["N/A"], "earlier": ""},
    ),
    "gpt3_coqa": (
        {"story": "S", "questions": ["Q?"], "answers": {"input_text": ["A"], "answer_start": [0]}},
        {"passage": "S", "question": "Q?", "answers": ["A"], "earlier": ""},
    ),
    "gpt3_race": (
        {"article": "S", "question": "Q?", "options": ["a", "b"], "answer": "B"},
        {"passage": "S", "question": "Q?", "choices": ["a", "b"], "gold": 1, "earlier": ""},
    ),
    "gpt3_boolq": (
        {"passage": "P", "question": "is it", "answer": True},
        {"passage": "P", "question": "is it", "gold": 1},
    ),
    "gpt3_arc_easy": (
        {
            "question": {"stem": "Q?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
            "answerKey": "B",
        },
        {"question": "Q?", "choices": ["a", "b"], "gold": 1},
    ),
    "gpt3_openbookqa": (
        {"question_stem": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
        {"question": "Q?", "choices": ["a", "b"], "gold": 0},
    ),
    "translation_fr_en": ({"translation": {"en": "yes", "fr": "oui"}}, {"source": "oui", "target": "yes"}),
    "sentence_polarity": ({"text": "fine", "label": 1}, {"text": "fine", "gold": 1}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_layouts_of_the_same_data_are_understood(tmp_path, name):
    row, expected = LAYOUTS[name]
    manager, _ = tasks.find([name], None, {"data": {name: str(questions(tmp_path / "rows.jsonl", [row]))}})
    assert tasks.load(manager, name)["tasks"][name].eval_docs.to_list() == [expected]


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("gpt3_race", {"article": "S", "question": "Q", "options": ["a"], "answer": "B"}, "the answer 'B': it is a letter"),
        ("gpt3_arc_easy", {"question": "Q", "choices": ["a", "b"], "answerKey": "E"}, "the answer 'E', which is none of A, B"),
        ("gpt3_winogrande", {"sentence": "No.", "option1": "a", "option2": "b", "answer": 1}, "it needs a blank (_)"),
        ("gpt3_lambada", {"text": "Word"}, "has a single word"),
        ("gpt3_coqa", {"story": "S", "questions": ["Q", "R"], "answers": ["A"]}, "has 2 questions and 1 answers"),
        ("gpt3_hellaswag", {"activity_label": "A", "ctx_a": "B", "endings": 3, "label": 0}, "has '3' for its endings"),
        ("gpt3_hellaswag", {"activity_label": "A", "ctx_a": "B", "endings": ["a"], "label": 1}, "choice 2 for its answer, of 1"),
        ("gpt3_squadv2", {"context": "C", "question": "Q", "answers": {"text": 3}}, "not laid out as its publisher's"),
    ],
)  # fmt: skip
def test_a_row_that_makes_no_question_is_named(tmp_path, name, row, sentence):
    manager, _ = tasks.find([name], None, {"data": {name: str(questions(tmp_path / "rows.jsonl", [row]))}})
    with pytest.raises(InputError) as error:
        tasks.load(manager, name)
    assert sentence in str(error.value)


def real(name: str, file: str, fewshot: str | None = None):
    data = {name: {"test": str(REAL / file), "fewshot": str(REAL / fewshot) if fewshot else None}}
    manager, _ = tasks.find([name], None, {"data": data})
    return tasks.load(manager, name)["tasks"][name].dataset


@needs_real_files
def test_webquestions_of_its_publisher_has_its_rows():
    parts = real("webquestions", "qa/webquestions.test.json.gz", "qa/webquestions.trainmodel.json.gz")
    assert (len(parts["test"]), len(parts["fewshot"])) == (2032, 2834)
    assert parts["test"][0] == {
        "question": "what does jamaican people speak?", "answers": ["Jamaican Creole English Language", "Jamaican English"]
    }  # fmt: skip


@needs_real_files
def test_snli_of_its_publisher_has_its_rows_and_no_premise_on_both_sides():
    parts = real("snli", "nli/snli.dev.csv.gz")
    assert (len(parts["test"]), len(parts["fewshot"])) == (9331, 500)
    gold = Counter(parts["test"]["gold"]) + Counter(parts["fewshot"]["gold"])
    assert gold == {0: 3325, 1: 3231, 2: 3275}
    assert not set(parts["test"]["premise"]) & set(parts["fewshot"]["premise"])


@needs_real_files
def test_copa_of_its_publisher_has_its_rows():
    parts = real("gpt3_copa", "commonsense/copa-dev.xml")
    assert (len(parts["test"]), len(parts["fewshot"])) == (400, 100)
    assert parts["test"][0] == {
        "premise": "My body cast a shadow over the grass.", "context": "My body cast a shadow over the grass because",
        "choices": ["the sun was rising.", "the grass was cut."], "gold": 0,
    }  # fmt: skip


@needs_real_files
def test_sentence_polarity_of_its_publisher_has_its_rows_and_labels():
    parts = real("sentence_polarity", "sentiment/sentence_polarity.zip")
    gold = Counter(parts["test"]["gold"]) + Counter(parts["fewshot"]["gold"])
    assert gold == {0: 5331, 1: 5331}
    first = sum(parts["test"]["gold"][:200])
    assert 60 < first < 140  # The files are one of each label: a --limit has to see both.


@needs_real_files
def test_sentence_pairs_without_a_header_are_all_read():
    parts = real("translation_en_fr", "translation/python-docs.en-fr.tsv.gz")
    assert (len(parts["test"]), len(parts["fewshot"])) == (20648, 500)
    assert parts["test"][0] == {"source": "About these documents", "target": "À propos de ces documents"}
