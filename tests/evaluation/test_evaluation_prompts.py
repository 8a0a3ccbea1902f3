"""Examples in prompts: drawn by seed and question alone, none is the question itself, and only whole ones that fit."""

import json

import pytest
import yaml

from data_prep.files import InputError
from pipeline.evaluation import protocol, tasks
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.prompts import drawn, largest, prompting

POOL = [{"q": f"question {i}"} for i in range(30)]


def test_examples_depend_on_the_seed_and_the_question():
    first = drawn(POOL, 5, seed=0, question={"q": "a"})
    assert first == drawn(POOL, 5, seed=0, question={"q": "a"})
    assert first != drawn(POOL, 5, seed=1, question={"q": "a"})
    assert first != drawn(POOL, 5, seed=0, question={"q": "b"})


def test_fewer_examples_are_the_first_of_more():
    assert drawn(POOL, 12, seed=3, question={})[:5] == drawn(POOL, 5, seed=3, question={})


def test_no_example_is_drawn_twice_nor_is_the_question():
    for seed in range(20):
        chosen = drawn(POOL, 29, seed=seed, question=POOL[7])
        assert POOL[7] not in chosen
        assert len({example["q"] for example in chosen}) == 29
    with pytest.raises(InputError, match="29 examples to draw from, not 30"):
        drawn(POOL, 30, seed=0, question=POOL[7])


def test_every_example_is_drawn_equally_often():
    counts = {example["q"]: 0 for example in POOL}
    for question in range(3000):
        for example in drawn(POOL, 3, seed=0, question={"n": question}):
            counts[example["q"]] += 1
    # 300 expected, standard deviation 16.4.
    assert all(abs(count - 300) < 5 * 16.4 for count in counts.values())


@pytest.mark.parametrize("most", range(8))
def test_the_most_examples_that_fit_are_found(most):
    assert largest(lambda count: count <= most, 8) == most


@pytest.fixture
def loaded(tmp_path):
    """A task with 40 examples of about 9 tokens each."""
    files = {}
    for split, count in (("train", 40), ("test", 3)):
        rows = [{"q": f"Is {split} {i} a number?", "gold": i % 2} for i in range(count)]
        files[split] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "numbers", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
        "fewshot_split": "train", "output_type": "multiple_choice", "doc_to_text": "{{q}}",
        "doc_to_choice": ["yes", "no"], "doc_to_target": "gold", "metadata": {"paper": {"zero_shot": {"doc_to_text": "Q: {{q}}"}}},
    }  # fmt: skip
    (tmp_path / "numbers.yaml").write_text(yaml.safe_dump(task))
    manager, _ = tasks.find(["numbers"], tmp_path, {})
    return tasks.load(manager, "numbers")


def prompts_of(lm, loaded, shots: int, seed: int = 0, limit: int | None = None) -> list[str]:
    output = protocol.score(lm, loaded, shots, seed=seed, limit=limit)
    return [sample["arguments"][0][0] for sample in output["samples"]["numbers"]]


def test_examples_that_do_not_fit_are_left_out_whole_and_counted(loaded, gpt, tokenizer):
    lm = PipelineLM(gpt, tokenizer)
    output = protocol.score(lm, loaded, 20, seed=0)
    about = output["prompts"]["numbers"]
    assert about["shots_cut"] == 3
    assert 0 < about["shots_mean"] < 20
    assert about["truncated"] == lm.truncated == 0
    for sample in output["samples"]["numbers"]:
        prompt = sample["arguments"][0][0]
        assert prompt.startswith("Is train ")
        assert len(tokenizer.encode(prompt + " yes")) <= gpt.context
        # One more example would not have fitted.
        assert len(tokenizer.encode(prompt + " yes")) + 14 > gpt.context
    row = protocol.rows_of(output, loaded)[0]
    assert (row["shots"], row["shots_cut"]) == (20, 3)


def test_prompts_depend_neither_on_the_limit_nor_on_other_questions(loaded, gpt, tokenizer):
    lm = PipelineLM(gpt, tokenizer)
    assert prompts_of(lm, loaded, 2, limit=1) == prompts_of(lm, loaded, 2)[:1]


def test_several_seeds_draw_several_prompts(loaded, gpt, tokenizer):
    lm = PipelineLM(gpt, tokenizer)
    first, second = prompts_of(lm, loaded, 2), prompts_of(lm, loaded, 2, seed=1)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert [prompt.split("\n\n")[-1] for prompt in first] == [prompt.split("\n\n")[-1] for prompt in second]


def test_a_prompt_without_examples_has_the_papers_other_form(loaded, gpt, tokenizer):
    lm = PipelineLM(gpt, tokenizer)
    assert prompts_of(lm, loaded, 0)[0] == "Q: Is test 0 a number?"
    assert prompts_of(lm, loaded, 1)[0].endswith("\n\nIs test 0 a number?")


def test_the_task_is_as_before_after_it_was_asked(loaded, gpt, tokenizer):
    task = loaded["tasks"]["numbers"]
    before = (task.sampler, task.fewshot_context, task.get_config("doc_to_text"), task.get_config("num_fewshot"))
    lm = PipelineLM(gpt, tokenizer)
    with prompting(task, lm, 2, seed=0):
        assert task.get_config("num_fewshot") == 2
    assert (
        task.sampler,
        task.fewshot_context,
        task.get_config("doc_to_text"),
        task.get_config("num_fewshot"),
    ) == before


def test_more_examples_than_there_are_is_refused(loaded, gpt, tokenizer):
    with pytest.raises(
        InputError, match=r"Task 'numbers' has 40 examples to draw from, not 41: ask for fewer --shots."
    ):
        protocol.score(PipelineLM(gpt, tokenizer), loaded, 41, seed=0)
