"""`evaluate` from its arguments to its files: what is written, what is refused, and that no network is needed."""

import argparse
import json
import socket

import pytest
import yaml

from data_prep.files import InputError, read_json, write_json
from pipeline.commands import evaluate
from pipeline.evaluation import tasks

SHIPPED_TASKS = {path.stem for path in tasks.SHIPPED.glob("[!_]*.yaml")}


def run(directory, *arguments: str) -> dict:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert evaluate.run(parser.parse_args(["--run", str(directory), *arguments])) == 0
    return json.loads((directory / "evaluation" / "results.json").read_text(), parse_constant=pytest.fail)


def write_task(folder, **fields) -> None:
    folder.mkdir(exist_ok=True)
    task = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "gold",
    }
    task |= {"dataset_path": "json", "test_split": "test", "fewshot_split": "train", **fields}
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))


def local_task(folder, **fields) -> None:
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 3), ("test", 4)):
        rows = [{"q": f"Is {split} {i} a number?", "gold": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    write_task(folder, dataset_kwargs={"data_files": files}, **fields)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_shipped_tasks_are_scored_without_a_network(run_directory, no_network, capsys):
    results = run(run_directory, "--limit", "2")
    about = results["pipeline"]
    assert {row["task"] for row in about["scores"]} == SHIPPED_TASKS
    for row in about["scores"]:
        assert row["n"] == 2
        assert row["metric"] == "perplexity" or 0 <= row["score"] <= 1
        assert row["higher_is_better"] == (row["metric"] != "perplexity")
        assert (row["chance"] is None) == (row["metric"] == "perplexity")
        assert results["n-shot"][f"{row['task']}@{row['shots']}"] == row["shots"]
        assert results["results"][f"{row['task']}@{row['shots']}"][f"{row['metric']},none"] == row["score"]
    assert {row["shots"] for row in about["scores"] if row["task"] == "two_digit_addition"} == {0, 5}
    assert (about["run"], about["step"], about["tokens_seen"], about["seed"]) == ("tiny", 7, 700, 0)
    assert about["data_fingerprint"] == "d" * 64
    printed = capsys.readouterr().out
    assert "last_word_choice" in printed
    assert "chance" in printed


def test_a_second_evaluation_gives_the_same_scores(run_directory):
    first, again = (
        run(run_directory, "--tasks", "arithmetic_choice,unscramble_cycle", "--limit", "8") for _ in range(2)
    )
    assert first["pipeline"]["scores"] == again["pipeline"]["scores"]


def test_a_user_can_read_prompts_and_answers(run_directory):
    run(run_directory, "--tasks", "two_digit_addition", "--shots", "2", "--limit", "3")
    lines = (run_directory / "evaluation" / "samples" / "two_digit_addition@2.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 3
    for sample in samples:
        assert sample["prompt"].count("Q: What is") == 3
        assert sample["exact_match"] == (sample["answers"][0] == sample["target"])


def test_a_folder_of_own_tasks_is_evaluated(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers")
    [row] = run(run_directory, "--include", str(tmp_path / "own"), "--shots", "1")["pipeline"]["scores"][:1]
    assert (row["task"], row["shots"], row["n"], row["chance"]) == ("numbers", 1, 4, 0.5)


def test_a_task_that_fixes_zero_shots_keeps_them(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers", num_fewshot=0)
    scores = run(run_directory, "--include", str(tmp_path / "own"), "--shots", "0,2")["pipeline"]["scores"]
    assert {row["shots"] for row in scores} == {0}


def test_prompts_longer_than_the_context_are_reported(run_directory, capsys):
    [row] = run(run_directory, "--tasks", "two_digit_addition", "--shots", "20", "--limit", "2")["pipeline"]["scores"]
    assert row["truncated"] == 2
    assert "lost their beginning" in capsys.readouterr().out


def test_tasks_that_need_documents_are_left_out_where_there_are_none(run_directory, capsys):
    record = read_json(run_directory / "run.json")
    write_json(
        run_directory / "run.json", {**record, "data": {**record["data"], "path": str(run_directory / "tokens")}}
    )
    scores = run(run_directory, "--limit", "1", "--shots", "0")["pipeline"]["scores"]
    assert {row["task"] for row in scores} == SHIPPED_TASKS - {"last_word", "last_word_choice"}
    assert "last_word is left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="need a corpus"):
        run(run_directory, "--tasks", "last_word")


def test_an_unknown_task_is_answered_with_the_nearest_names(run_directory):
    with pytest.raises(InputError, match=r"'two_digit_adition'.*two_digit_addition"):
        run(run_directory, "--tasks", "two_digit_adition")


def test_more_shots_than_examples_are_refused(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers")
    with pytest.raises(InputError, match="has 3 examples to draw from, not 9"):
        run(run_directory, "--include", str(tmp_path / "own"), "--shots", "9")


def test_a_hub_out_of_reach_is_one_sentence(run_directory, tmp_path, monkeypatch):
    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach the hub\nwith a second line")

    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", unreachable)
    write_task(tmp_path / "own", task="remote", dataset_path="somebody/something")
    with pytest.raises(InputError, match="reads 'somebody/something' from the Hugging Face hub") as error:
        run(run_directory, "--include", str(tmp_path / "own"), "--tasks", "remote")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("task: [", "cannot be read as a task"), ("- a list", "cannot be read as a task"), (None, "holds no")],
)
def test_a_broken_folder_of_tasks_is_named(run_directory, tmp_path, content, sentence):
    (tmp_path / "own").mkdir()
    if content:
        (tmp_path / "own" / "broken.yaml").write_text(content)
    with pytest.raises(InputError, match=sentence):
        run(run_directory, "--include", str(tmp_path / "own"))


def test_a_task_with_a_missing_field_is_named(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers", doc_to_text=None)
    with pytest.raises(InputError, match=r"'numbers' could not be loaded.*correct .*numbers\.yaml"):
        run(run_directory, "--include", str(tmp_path / "own"), "--tasks", "numbers")


@pytest.mark.parametrize(
    "arguments", [["--shots", "few"], ["--shots", "-1"], ["--limit", "0"], ["--batch_tokens", "many"]]
)
def test_arguments_out_of_range_end_with_status_2(arguments):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--run", "run", *arguments])


@pytest.mark.parametrize("name", sorted(SHIPPED_TASKS))
def test_each_shipped_task_states_its_chance_level(name, documents):
    manager, _ = tasks.find([name], None, {"documents": str(documents)})
    [task] = tasks.load(manager, name)["tasks"].values()
    stated = task.get_config("metadata")["chance"]
    for metric in task.higher_is_better():
        assert tasks.chance_level(task, metric) == stated.get(metric)
    if task.OUTPUT_TYPE == "multiple_choice":
        assert stated["acc"] == 1 / len(task.doc_to_choice(task.eval_docs[0]))
