"""Every shipped task with answers in a few words asks as Appendix G of the GPT-3 paper does, and scores what it should."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from data_prep.files import InputError
from pipeline.evaluation import tasks

FIXTURES = Path(__file__).parent / "fixtures"


class Expected(NamedTuple):
    """A task's fixture, the prompt of its first question without examples, what two examples put before it, and its answer."""

    file: str
    zero_shot: str
    before: str
    target: Any
    choices: list[str] | None


EXPECTED = {
    "translation_en_fr": Expected(
        "pairs.en-fr.tsv",
        "The door is open. =",
        "The train is late. = Le train est en retard.\nWe eat bread. = Nous mangeons du pain.\n",
        "La porte est ouverte.",
        None,
    ),
    "translation_fr_en": Expected(
        "pairs.en-fr.tsv",
        "La porte est ouverte. =",
        "Le ciel est gris. = The sky is grey.\nElle lit un livre. = She reads a book.\n",
        "The door is open.",
        None,
    ),
    "webquestions": Expected(
        "questions.jsonl",
        "Q: which planet is nearest to the sun?\n\nA:",
        (
            "Q: what does a baker bake?\n\nA: bread\n\nQ: which animal carries its house on its back?\n\n"
            "A: the snail\n\n"
        ),
        ["Mercury", "planet Mercury"],
        None,
    ),
    "natural_questions": Expected(
        "questions.jsonl",
        "Q: which planet is nearest to the sun?\n\nA:",
        (
            "Q: what does a baker bake?\n\nA: bread\n\nQ: which animal carries its house on its back?\n\n"
            "A: the snail\n\n"
        ),
        ["Mercury", "planet Mercury"],
        None,
    ),
    "gpt3_triviaqa": Expected(
        "questions.jsonl",
        "Q: which planet is nearest to the sun?\n\nA:",
        (
            "Q: what does a baker bake?\n\nA: bread\n\nQ: which animal carries its house on its back?\n\n"
            "A: the snail\n\n"
        ),
        ["Mercury", "planet Mercury"],
        None,
    ),
    "gpt3_squadv2": Expected(
        "squad.json",
        (
            "Title: Harbour\n\nBackground: The harbour was built in 1802. It froze over in 1830.\n\n"
            "Q: When was the harbour built?\n\nA:"
        ),
        (
            "Title: Bridge\n\nBackground: The bridge has nine arches and is made of granite.\n\n"
            "Q: How many arches has the bridge?\n\nA: nine\n\nQ: What is the bridge made of?\n\nA: granite\n\n"
            "Title: Bridge\n\nBackground: The bridge has nine arches and is made of granite.\n\n"
            "Q: How many arches has the bridge?\n\nA: nine\n\n"
        ),
        ["1802", "in 1802"],
        None,
    ),
    "gpt3_coqa": Expected(
        "coqa.json",
        "Mara has a goat called Pip. Pip likes turnips.\n\nQ: What is the goat's name?\n\nA:",
        (
            "Lena sold her bicycle and bought a boat.\n\nQ: What did Lena sell?\n\nA: her bicycle\n\n"
            "Q: And buy?\n\nA: a boat\n\nLena sold her bicycle and bought a boat.\n\nQ: What did Lena sell?\n"
            "\nA: her bicycle\n\n"
        ),
        ["Pip", "PIP"],
        None,
    ),
    "gpt3_race": Expected(
        "race.jsonl",
        ("Article:\nOwls hunt at night and sleep by day. They hear very well.\n\nQ: When do owls hunt?\n\nA:"),
        (
            "Article:\nInes walks to school because the bus is slow.\n\nQ: How does Ines go to school?\n\n"
            "A: On foot\n\nQ: The bus is _ .\n\nA: slow\n\nArticle:\n"
            "Ines walks to school because the bus is slow.\n\nQ: How does Ines go to school?\n\nA: On foot\n\n"
        ),
        0,
        ["At night", "At noon", "By day", "Never"],
    ),
    "gpt3_boolq": Expected(
        "boolq.jsonl",
        "Moss grows on stones in wet woods.\nquestion: does moss grow on stones?\nanswer:",
        (
            "Bats sleep hanging by their feet.\nquestion: do bats sleep hanging?\nanswer: yes\n\n"
            "Kites fly because the wind lifts them.\nquestion: can a kite fly without wind?\nanswer: no\n\n"
        ),
        1,
        ["no", "yes"],
    ),
    "snli": Expected(
        "pairs.nli.csv",
        "A boy throws a ball.\nQuestion: A child plays. True, False, or Neither?",
        (
            "Two men fix a roof.\nQuestion: The men are brothers. True, False, or Neither? Neither\n\n"
            "A woman waters flowers.\nQuestion: The woman is asleep. True, False, or Neither? False\n\n"
        ),
        0,
        ["True", "Neither", "False"],
    ),
    "gpt3_anli_r1": Expected(
        "pairs.nli.csv",
        "anli 1: anli 1: A boy throws a ball.\nQuestion: A child plays. True, False, or Neither?",
        (
            "anli 1: anli 1: Two men fix a roof.\n"
            "Question: The men are brothers. True, False, or Neither? Neither\n\n"
            "anli 1: anli 1: A woman waters flowers.\n"
            "Question: The woman is asleep. True, False, or Neither? False\n\n"
        ),
        0,
        ["True", "Neither", "False"],
    ),
    "gpt3_cb": Expected(
        "pairs.nli.csv",
        "A boy throws a ball.\nquestion: A child plays. true, false, or neither?\nanswer:",
        (
            "Two men fix a roof.\nquestion: The men are brothers. true, false, or neither?\nanswer: neither\n"
            "\nA woman waters flowers.\nquestion: The woman is asleep. true, false, or neither?\n"
            "answer: false\n\n"
        ),
        0,
        ["true", "false", "neither"],
    ),
    "gpt3_rte": Expected(
        "pairs.nli.csv",
        "A boy throws a ball.\nquestion: A child plays. True or False?\nanswer:",
        (
            "Two men fix a roof.\nquestion: The men are brothers. True or False?\nanswer: False\n\n"
            "A woman waters flowers.\nquestion: The woman is asleep. True or False?\nanswer: False\n\n"
        ),
        0,
        ["True", "False"],
    ),
    "gpt3_lambada": Expected(
        "passages.txt",
        "Fill in blank:\n\nBen had lost his hat in the wind, and all day he looked for his ____. ->",
        (
            "Fill in blank:\n\nThe boys built a raft out of barrels, but the river took the ____. -> raft\n\n"
            "Anna put the lamp on the table. When the lights went out she lit the ____. -> lamp\n\n"
            "Ben had lost his hat in the wind, and all day he looked for his ____. ->"
        ),
        " hat",
        None,
    ),
    "gpt3_storycloze": Expected(
        "storycloze.csv",
        "Leo trained all year. He ran every day. The race was in May. Leo felt strong.",
        (
            "The roof leaked. Rain came in. Dad took a ladder. He found the hole. Dad mended the roof.\n\n"
            "Mia wanted a cake. She had no eggs. She went to the shop. The shop was open. Mia bought eggs.\n\n"
        ),
        1,
        ["He stayed in bed.", "He won the race."],
    ),
    "gpt3_hellaswag": Expected(
        "hellaswag.jsonl",
        "Washing a car: A girl fills a bucket. She",
        (
            "Fixing a tyre. : A wheel is off. The woman pumps up the tyre.\n\n"
            "Baking bread: A man kneads dough. He puts it in the oven.\n\n"
        ),
        1,
        ["eats it.", "soaps the car.", "flies off.", "locks the bucket."],
    ),
    "gpt3_copa": Expected(
        "copa.xml",
        "The lamp went out because",
        "The string broke so the kite flew away.\n\nThe road was closed because a tree had fallen.\n\n",
        0,
        ["the oil was used up.", "the door was red."],
    ),
    "gpt3_piqa": Expected(
        "piqa.jsonl",
        "How to cool tea quickly.",
        "To warm cold hands, rub them together.\n\nTo find north at night, look for the pole star.\n\n",
        0,
        ["Add some ice.", "Add some sand."],
    ),
    "gpt3_arc_easy": Expected(
        "arc.jsonl",
        "Question: Which of these is a liquid?\nAnswer:",
        ("Question: Which is a rock?\nAnswer: granite\n\nQuestion: Which tool measures heat?\nAnswer: thermometer\n\n"),
        1,
        ["stone", "milk", "wood", "iron"],
    ),
    "gpt3_arc_challenge": Expected(
        "arc.jsonl",
        "Question: Which of these is a liquid?\nAnswer:",
        ("Question: Which is a rock?\nAnswer: granite\n\nQuestion: Which tool measures heat?\nAnswer: thermometer\n\n"),
        1,
        ["stone", "milk", "wood", "iron"],
    ),
    "gpt3_openbookqa": Expected(
        "arc.jsonl",
        "Which of these is a liquid?",
        "Which is a rock? granite\n\nWhich tool measures heat? thermometer\n\n",
        1,
        ["stone", "milk", "wood", "iron"],
    ),
    "gpt3_winogrande": Expected(
        "winogrande.jsonl",
        "The trophy did not fit in the case because the case",
        ("The box would not go through the door as the door was narrow.\n\nTom lent Jim a pen since Tom had two.\n\n"),
        "was too big.",
        [
            "The trophy did not fit in the case because the trophy",
            "The trophy did not fit in the case because the case",
        ],
    ),
    "sentence_polarity": Expected(
        "polarity",
        "Review: no one seems awake .\nSentiment:",
        (
            "Review: the best ending in years .\nSentiment: positive\n\nReview: funny , brave and short .\n"
            "Sentiment: positive\n\n"
        ),
        0,
        ["negative", "positive"],
    ),
}


@functools.cache
def load(name: str, file: Path) -> ConfigurableTask:
    manager, _ = tasks.find([name], None, {"data": {name: {"test": str(file)}}})
    [task] = tasks.load(manager, name)["tasks"].values()
    assert isinstance(task, ConfigurableTask)
    return task


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts_are_those_of_the_paper(name):
    expected = EXPECTED[name]
    task = load(name, FIXTURES / expected.file)
    question = task.eval_docs[0]
    task.set_fewshot_seed(0)
    prompts = [task.fewshot_context(question, shots) for shots in (0, 2)]
    if name == "gpt3_winogrande":  # one prompt for each option, which ends with it
        prompts = [prompt[1] for prompt in prompts]
    if expected.before.endswith(expected.zero_shot.removeprefix(task.config.description)):  # with a description on top
        assert prompts == [expected.zero_shot, expected.before]
    else:
        assert prompts == [expected.zero_shot, expected.before + expected.zero_shot]
    assert task.doc_to_target(question) == expected.target
    assert (task.doc_to_choice(question) if task.config.doc_to_choice else None) == expected.choices


def test_each_task_that_reads_a_file_for_short_answers_is_expected_here():
    manager, _ = tasks.find(["snli"], None, {})
    reading = {name for name in manager.all_subtasks if tasks.file_names(manager, name)}
    written_elsewhere = {name for name in reading if manager.task_index[name].tags & {"news", "dialogue", "code"}}
    assert reading - written_elsewhere == set(EXPECTED)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("translation_en_fr", "Q: What is the French translation of The door is open. A:"),
        ("translation_fr_en", "Q: What is the English translation of La porte est ouverte. A:"),
        ("gpt3_lambada", "Ben had lost his hat in the wind, and all day he looked for his"),
    ],
)
def test_the_form_without_examples_is_the_papers_where_it_differs(name, prompt):
    task = load.__wrapped__(name, FIXTURES / EXPECTED[name].file)
    for key, value in tasks.of_paper(task)["zero_shot"].items():
        task.set_config(key, value)
    assert task.fewshot_context(task.eval_docs[0], 0) == prompt


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_says_its_kind_and_section_and_has_no_harness_name(name):
    task = load(name, FIXTURES / EXPECTED[name].file)
    assert task.config.tag[-1] in tasks.KINDS
    paper = tasks.of_paper(task)
    if "gpt3_tasks" in task.config.tag:
        assert paper["section"].startswith("3.")
    if task.OUTPUT_TYPE == "generate_until":
        assert paper["decoding"] == {"num_beams": 4, "length_penalty": 0.6}
        assert task.config.generation_kwargs["until"] == ["\n"]
    assert task.config.test_split != task.config.fewshot_split


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_states_its_chance_level_or_has_one_in_its_choices(name):
    task = load(name, FIXTURES / EXPECTED[name].file)
    levels = {metric: tasks.chance_level(task, metric) for metric in task.higher_is_better()}
    if task.OUTPUT_TYPE == "multiple_choice":
        assert levels == {"acc": pytest.approx(1 / len(task.doc_to_choice(task.eval_docs[0])))}
    elif name == "gpt3_squadv2":  # always abstaining scores the share of questions without an answer
        assert levels == {"f1": None, "exact_match": None}
    else:
        assert {level for metric, level in levels.items() if metric not in ("chrf", "perplexity")} == {0.0}


def test_the_paper_divides_by_the_likelihood_after_a_bare_answer_for_arc_openbookqa_and_race_only():
    contexts = {
        name: tasks.of_paper(load(name, FIXTURES / e.file)).get("answer_context") for name, e in EXPECTED.items()
    }
    assert {name: context for name, context in contexts.items() if context} == {
        "gpt3_arc_easy": "Answer:", "gpt3_arc_challenge": "Answer:", "gpt3_openbookqa": "Answer:", "gpt3_race": "A:",
    }  # fmt: skip


def test_a_harness_name_means_our_form_where_a_file_is_given_for_it():
    manager, names = tasks.find(["copa"], None, {"data": {"copa": str(FIXTURES / "copa.xml")}})
    assert names == ["gpt3_copa"]
    assert len(tasks.load(manager, "gpt3_copa")["tasks"]["gpt3_copa"].eval_docs) == 8


def test_a_first_look_and_the_tasks_with_a_file_are_scored_unless_others_are_named():
    manager, names = tasks.find(None, None, {"data": {"snli": str(FIXTURES / "pairs.nli.csv")}})
    assert names == [*tasks.default_names(manager, {}), "snli"]
    assert {"two_digit_addition", "arithmetic_choice", "unscramble_cycle", "last_word"} <= set(names)
    _, alone = tasks.find(["self_contained"], None, {})
    assert {
        "five_digit_subtraction",
        "one_digit_composite",
        "unscramble_reversed",
        *tasks.default_names(manager, {}),
    } <= set(alone)
    assert not [name for name in names if name.startswith("gpt3_")]


def test_a_tag_a_list_and_a_pattern_stand_for_their_tasks():
    _, tagged = tasks.find(["nli"], None, {})
    assert tagged == ["gpt3_anli_r1", "gpt3_cb", "gpt3_rte", "snli"]
    assert tasks.find(["snli,gpt3_cb,snli"], None, {})[1] == ["snli", "gpt3_cb"]
    assert tasks.find([str(tasks.SHIPPED / "snli.yaml")], None, {})[1] == [str(tasks.SHIPPED / "snli.yaml")]


@pytest.mark.slow
def test_harness_names_groups_and_patterns_are_found():
    _, names = tasks.find(["gpt3_arc_*", "arc_easy", "mmlu_stem", "mmlu_astronomy"], None, {})
    # A task inside a chosen group is scored there.
    assert names == ["gpt3_arc_challenge", "gpt3_arc_easy", "arc_easy", "mmlu_stem"]


@pytest.mark.slow
def test_no_shipped_name_is_one_of_the_harness():
    shipped, _ = tasks.find([], None, {})
    with tasks.quiet():
        harness = TaskManager()
    ours = {name for name in shipped.all_subtasks if not shipped.task_index[name].tags & {"code"}}
    assert not ours & set(harness.all_tasks)


def test_a_file_for_a_task_that_reads_none_is_refused():
    with pytest.raises(InputError, match=r"--data webquestion=\.\.\. names no task that reads a file: .*webquestions"):
        tasks.find(None, None, {"data": {"webquestion": "questions.jsonl"}})
    with pytest.raises(InputError, match="two_digit_addition=... names no task that reads a file"):
        tasks.find(None, None, {"data": {"two_digit_addition": "sums.jsonl"}})


def test_a_file_of_few_questions_asks_for_no_more_examples_than_it_has():
    task = load("snli", FIXTURES / "pairs.nli.csv")
    assert task.config.metadata["shots"] == [0, 1, 8]
    assert tasks.default_shots(task) == [0, 1, 2]
    assert tasks.left_out(task) == "1 without a label"
    assert [tasks.chance_level(task, metric) for metric in ("acc", "acc_per_token")] == [1 / 3, 1 / 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("doc_to_txt: q", "it has a field 'doc_to_txt', which no task has; is 'doc_to_text' meant?"),
        ("output_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: a", "it has no field 'doc_to_choice'"),
        ("doc_to_text: q", "it has no field 'doc_to_target'"),
        ("doc_to_target: q", "it has no field 'doc_to_text'"),
        ("doc_to_text: q\ndoc_to_target: a\ntest_split: null", "it has no field 'test_split' or 'validation_split'"),
        ("doc_to_text: q\ndoc_to_target: a\ndataset_path: null", "it has no field 'dataset_path' or 'custom_dataset'"),
    ],
)
def test_a_missing_or_misspelt_field_is_named_with_its_file(tmp_path, text, sentence):
    lines = {"task": "own", "dataset_path": "json", "test_split": "test"}
    given = {line.split(":")[0] for line in text.split("\n")}
    content = "".join(f"{key}: {value}\n" for key, value in lines.items() if key not in given) + text
    (tmp_path / "own.yaml").write_text(content)
    manager, _ = tasks.find(["own"], tmp_path, {})
    with pytest.raises(InputError) as error:
        tasks.load(manager, "own")
    assert sentence in str(error.value)
    assert str(tmp_path / "own.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("rows", "fields", "sentence"),
    [
        ("", {}, "a split of its data is empty"),
        ('{"q": "a?", "a": "b"}\n', {"test_split": "validation"}, "its data has no split 'validation'"),
        (
            '{"q": "a?", "a": "b"}\n',
            {"doc_to_text": "question"},
            "doc_to_text is 'question', no column of its data, which has q, a",
        ),
        ('{"q": "a?", "a": "b"}\n', {"doc_to_target": "{{answer}}"}, "'answer' is undefined"),
    ],
)
def test_data_that_does_not_fit_a_yaml_are_named_with_it(tmp_path, rows, fields, sentence):
    (tmp_path / "rows.jsonl").write_text(rows)
    task = {
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "q", "doc_to_target": "a", "generation_kwargs": {"until": ["\n"]}, **fields,
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(task))
    manager, _ = tasks.find(["own"], tmp_path, {})
    with pytest.raises(InputError) as error:
        tasks.load(manager, "own")
    assert sentence in str(error.value)
    assert str(tmp_path / "own.yaml") in str(error.value)


def test_a_yaml_without_a_name_is_not_left_out_in_silence(tmp_path):
    (tmp_path / "own.yaml").write_text("include: _part.yaml\ndataset_path: json\n")
    (tmp_path / "_part.yaml").write_text("doc_to_text: q\n")
    with pytest.raises(InputError, match=r"own\.yaml has no field `task`"):
        tasks.find(None, tmp_path, {})
