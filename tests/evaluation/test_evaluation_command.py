"""`evaluate` from its arguments to its files: what is written, what is refused, and that no network is needed."""

import argparse
import json
import shutil
import socket
import statistics

import pytest
import torch
import yaml

from data_prep.files import InputError, read_json, write_json
from pipeline.commands import evaluate
from pipeline.evaluation import protocol, tasks

SHIPPED_TASKS = set(tasks.find(None, None, {})[1])


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
        key = f"{row['metric']},{'none' if row['scoring'] == 'harness' else 'paper'}"
        assert results["results"][f"{row['task']}@{row['shots']}"][key] == row["score"]
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
    run(run_directory, "--tasks", "two_digit_addition", "--shots", "0", "--limit", "3")
    lines = (run_directory / "evaluation" / "samples" / "two_digit_addition@0.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 3
    for sample in samples:
        assert sample["prompt"].startswith("Q: What is")
        assert sample["exact_match"] == (sample["answers"][0] == sample["target"])


def test_a_folder_of_own_tasks_is_evaluated(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers")
    [row] = run(run_directory, "--include", str(tmp_path / "own"), "--shots", "1")["pipeline"]["scores"][:1]
    assert (row["task"], row["shots"], row["n"], row["chance"]) == ("numbers", 1, 4, 0.5)


def test_a_task_that_fixes_zero_shots_keeps_them(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers", num_fewshot=0)
    scores = run(run_directory, "--include", str(tmp_path / "own"), "--shots", "0,2")["pipeline"]["scores"]
    assert {row["shots"] for row in scores} == {0}


def test_fewer_examples_than_asked_for_are_reported(run_directory, capsys):
    row, _ = run(run_directory, "--tasks", "two_digit_addition", "--shots", "20", "--limit", "2")["pipeline"]["scores"]
    assert (row["shots_cut"], row["truncated"]) == (2, 0)
    assert row["shots_mean"] < 20
    assert "two_digit_addition, 20-shot: 2 of 2 prompts hold fewer examples" in capsys.readouterr().out


def test_questions_longer_than_the_context_are_reported(run_directory, tmp_path, capsys):
    local_task(tmp_path / "own", task="numbers", doc_to_text="{{q}} " * 30)
    rows = run(run_directory, "--include", str(tmp_path / "own"), "--shots", "0")["pipeline"]["scores"]
    # Each of 4 questions has two choices.
    assert {row["truncated"] for row in rows} == {8}
    assert "8 requests exceeded the context of 48 tokens and lost their beginning" in capsys.readouterr().out


def test_several_seeds_give_their_mean_and_spread(run_directory, tmp_path):
    local_task(tmp_path / "own", task="numbers")
    arguments = ["--include", str(tmp_path / "own"), "--shots", "0,2"]
    scores = run(run_directory, *arguments, "--seeds", "0,1,2")["pipeline"]["scores"]
    alone = {seed: run(run_directory, *arguments, "--seed", str(seed))["pipeline"]["scores"] for seed in (0, 1, 2)}
    for number, row in enumerate(scores):
        if row["shots"] == 0:
            assert row["seeds"] == [0]
            continue
        of_seeds = [alone[seed][number]["score"] for seed in (0, 1, 2)]
        assert row["seed_scores"] == of_seeds
        assert row["score"] == pytest.approx(statistics.mean(of_seeds))
        assert row["spread"] == pytest.approx(statistics.stdev(of_seeds))
    assert (run_directory / "evaluation" / "samples" / "numbers@2,seed=1.jsonl").is_file()


def test_what_can_be_scored_is_scored_and_what_cannot_ends_with_status_2(run_directory, tmp_path, capsys):
    local_task(tmp_path / "own", task="numbers")
    write_task(tmp_path / "own", task="missing", dataset_kwargs={"data_files": {"test": str(tmp_path / "no.jsonl")}})
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    arguments = ["--run", str(run_directory), "--include", str(tmp_path / "own"), "--shots", "0"]
    assert evaluate.run(parser.parse_args(arguments)) == 2
    assert "error: Task 'missing' could not be loaded" in capsys.readouterr().err
    scores = read_json(run_directory / "evaluation" / "results.json")["pipeline"]["scores"]
    assert {row["task"] for row in scores} == {"numbers"}


def test_a_stopped_evaluation_goes_on_with_the_tasks_that_are_left(run_directory, monkeypatch):
    arguments = ["--tasks", "arithmetic_choice,unscramble_choice", "--limit", "4", "--shots", "1"]
    ask, asked = protocol.asked, []

    def stopped(lm, name, *others):
        asked.append(name)
        if name == "unscramble_choice" and len(asked) == 2:
            raise KeyboardInterrupt
        return ask(lm, name, *others)

    monkeypatch.setattr(protocol, "asked", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(run_directory, *arguments)
    gone_on = run(run_directory, *arguments)["pipeline"]["scores"]
    assert asked == ["arithmetic_choice", "unscramble_choice", "unscramble_choice"]
    assert run(run_directory, *arguments, "--fresh")["pipeline"]["scores"] == gone_on
    assert len(asked) == 5


def test_the_scores_of_another_checkpoint_are_not_taken_from_the_cache(run_directory, gpt, monkeypatch):
    arguments = ["--tasks", "arithmetic_choice", "--limit", "4", "--shots", "0"]
    run(run_directory, *arguments)
    path = run_directory / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"] = {name: value * 1.5 for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    asked = []
    ask = protocol.asked
    monkeypatch.setattr(protocol, "asked", lambda *given: asked.append(given) or ask(*given))
    run(run_directory, *arguments)
    assert len(asked) == 1


def test_another_run_is_compared_on_the_same_questions(run_directory, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run_directory, other)
    arguments = ["--tasks", "arithmetic_choice", "--shots", "0", "--limit", "30"]
    with pytest.raises(InputError, match="has no scores to compare with: evaluate it"):
        run(run_directory, *arguments, "--compare", str(other))
    run(other, *arguments)
    # Their answers, but for one question that they got right or wrong otherwise.
    path = other / "evaluation" / "samples" / "arithmetic_choice@0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["acc"] = 1 - lines[0]["acc"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {row["metric"]: row for row in run(run_directory, *arguments, "--compare", str(other))["pipeline"]["scores"]}
    against = rows["acc"]["against"]
    assert against["run"] == "other"
    assert abs(against["difference"]) == pytest.approx(1 / 30)
    assert against["score"] == pytest.approx(sum(line["acc"] for line in lines) / 30)
    assert against["low"] <= against["difference"] <= against["high"]
    assert rows["acc_per_token"]["against"]["difference"] == 0
    assert "Against other, on the same questions" in capsys.readouterr().out
    # Other questions cannot be paired.
    rows = run(run_directory, *arguments[:-1], "20", "--compare", str(other))["pipeline"]["scores"]
    assert all("against" not in row for row in rows)
    assert "answered other questions" in capsys.readouterr().err


def test_published_figures_stand_beside_the_score_that_is_taken_as_theirs(run_directory, tmp_path, capsys):
    local_task(tmp_path / "own", task="numbers", metadata={"paper": {"results": "copa", "answer_context": "Answer:"}})
    rows = run(run_directory, "--include", str(tmp_path / "own"), "--shots", "0,1,2")["pipeline"]["scores"]
    with_figures = {(row["shots"], row["metric"]): row["published"] for row in rows if row["published"]}
    # Brown et al. 2020, Table H.1, COPA with GPT-3 Small; ours are 4 questions, not its 100.
    assert {key: figures[0]["score"] for key, figures in with_figures.items()} == {
        (0, "acc_unconditional"): 0.66,
        (1, "acc_unconditional"): 0.62,
        (2, "acc_unconditional"): 0.67,
    }
    assert with_figures[2, "acc_unconditional"] == [
        {"model": "GPT-3 Small", "score": 0.67, "shots": 32, "split": "validation", "n": 100, "full": False}
    ]
    assert "Beside published models" in capsys.readouterr().out


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


@pytest.mark.slow  # the harness indexes its thousands of tasks
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
    "arguments",
    [
        ["--shots", "few"],
        ["--shots", "-1"],
        ["--limit", "0"],
        ["--batch_tokens", "many"],
        ["--seeds", "0,x"],
        ["--data", "copa"],
        ["--data", "copa=/no/such/file"],
        ["--data", "copa:train=README.md"],
        ["--scoring", "mine"],
    ],
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


def test_the_run_may_stand_by_itself_for_torchrun_takes_the_option(run_directory):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    rest = ["--tasks", "arithmetic_choice", "--shots", "0", "--limit", "2"]
    assert evaluate.run(parser.parse_args([str(run_directory), *rest])) == 0
    for runs in ([], [str(run_directory), "--run", str(run_directory)]):
        with pytest.raises(InputError, match="Give one run directory"):
            evaluate.run(parser.parse_args([*runs, *rest]))
