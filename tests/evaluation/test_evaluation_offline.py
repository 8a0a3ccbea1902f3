"""Without a network an evaluation neither hangs nor ends in a traceback: the hub is asked once, briefly, and only where it is needed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import datasets
import datasets.config
import huggingface_hub.constants
import pytest
import yaml

from data_prep.files import InputError
from pipeline.evaluation import hub, task_files, tasks

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parents[2]
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


@pytest.fixture(autouse=True)
def switches_are_put_back(monkeypatch):
    """Each test begins as a process does that has not asked yet, with the switches off."""
    for name in SWITCHES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in SWITCHES[:2]:
        monkeypatch.setattr(datasets.config, name, False)
    reachable = hub.reachable
    reachable.cache_clear()
    yield
    reachable.cache_clear()


@pytest.fixture
def refused(monkeypatch):
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.fixture
def hanging():
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def remote_task(folder: Path, **fields) -> None:
    folder.mkdir(exist_ok=True)
    task = {
        "task": "remote",
        "dataset_path": "somebody/something",
        "test_split": "test",
        "doc_to_text": "q",
        "doc_to_target": "a",
    }
    (folder / "remote.yaml").write_text(yaml.safe_dump({**task, **fields}))


def test_a_task_on_a_hub_that_refuses_is_one_sentence_with_the_way_out(refused, tmp_path):
    remote_task(tmp_path)
    manager, names = tasks.find(["remote"], tmp_path, {})
    started = time.perf_counter()
    with pytest.raises(InputError) as error:
        tasks.load(manager, names[0])
    assert time.perf_counter() - started < 3
    sentence = str(error.value)
    assert "\n" not in sentence
    assert "Task 'remote' reads 'somebody/something' from the Hugging Face hub, which cannot be reached" in sentence
    assert f"copy its YAML ({tmp_path / 'remote.yaml'})" in sentence
    assert "--include" in sentence


def test_a_shipped_task_says_what_it_would_fetch_and_which_columns_a_file_needs(refused):
    manager, names = tasks.find(["webquestions"], None, {})
    with pytest.raises(InputError) as error:
        tasks.load(manager, names[0])
    assert (
        "would fetch stanfordnlp/web_questions, split test, from the Hugging Face hub, which cannot be reached"
        in str(error.value)
    )
    assert "a file with the columns question, answers as --data webquestions=FILE" in str(error.value)


def test_no_hub_is_asked_for_tasks_that_need_none(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    data = {"snli": {"test": str(FIXTURES / "pairs.nli.csv")}}
    manager, names = tasks.find(["snli", "two_digit_addition"], None, {"data": data})
    for name in names:
        tasks.load(manager, name)


@pytest.mark.slow
def test_a_metric_of_the_hub_is_missed_before_the_first_question(refused, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "a?", "a": "b"}) + "\n")
    files = {"data_files": {"test": str(tmp_path / "rows.jsonl")}}
    metrics = [{"metric": "rouge", "hf_evaluate": True, "aggregation": "mean", "higher_is_better": True}]
    remote_task(tmp_path, dataset_path="json", dataset_kwargs=files, metric_list=metrics)
    manager, _ = tasks.find(["remote"], tmp_path, {})
    with pytest.raises(InputError, match="Task 'remote' scores with 'rouge', which the library evaluate fetches"):
        tasks.load(manager, "remote")


def test_without_an_answer_the_libraries_read_their_caches_only(refused):
    assert not hub.prepare()
    assert [os.environ[name] for name in SWITCHES] == ["1"] * 3
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(ConnectionError):
        datasets.load_dataset("somebody/something")


def test_a_switch_that_the_user_set_is_not_argued_with(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("the hub was asked"))
    assert not hub.reachable()


def test_a_hub_that_answers_is_used(monkeypatch):
    class Session:
        def head(self, address: str, timeout: float):
            return type("Response", (), {"status_code": 200})

    rows = datasets.Dataset.from_list([{"question": f"{i}?", "answer": [f"a{i}"]} for i in range(9)])
    monkeypatch.setattr(hub, "get_session", Session)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, split: rows)
    manager, _ = tasks.find(["natural_questions"], None, {})
    with pytest.raises(InputError, match="Each example .* is scored as well"):  # both splits are the same rows here
        tasks.load(manager, "natural_questions")
    split = hub.Split("somebody/something", None, "train", "own", "question")
    assert split.rows() == rows.to_list()
    assert split.rows(at_most=3) == split.rows(at_most=3)
    assert len(split.rows(at_most=3)) == 3
    assert hub.reachable()


def test_a_proxys_error_is_no_answer(monkeypatch):
    class Session:
        def head(self, address: str, timeout: float):
            return type("Response", (), {"status_code": 502})

    monkeypatch.setattr(hub, "get_session", Session)
    assert not hub.reachable()


def test_a_cached_copy_is_read_without_a_network(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}?", "answers": [str(i)]}) + "\n" for i in range(5))
    )
    made = datasets.load_dataset(
        "json", data_files={"test": str(tmp_path / "rows.jsonl")}, cache_dir=str(tmp_path / "made")
    )
    [table] = (tmp_path / "made").rglob("*.arrow")
    # As the library leaves a data set of the hub: name___set/configuration/version/hash.
    home = tmp_path / "cache" / "somebody___something" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(table.parent, home)
    (home / table.name).rename(home / table.name.replace("json-", "something-"))
    description = json.loads((home / "dataset_info.json").read_text())
    (home / "dataset_info.json").write_text(json.dumps({**description, "dataset_name": "something"}))
    parts = task_files.dataset(name="own", hub={"path": "somebody/something", "test": "test"}, columns={"question": []})
    assert len(parts["test"]) + len(parts["fewshot"]) == len(made["test"]) == 5


def test_a_hub_that_never_answers_is_not_waited_for(hanging, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hanging)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    started = time.perf_counter()
    for name in ("webquestions", "natural_questions"):
        with pytest.raises(InputError, match="which cannot be reached"):
            tasks.load(tasks.find([name], None, {})[0], name)
    assert time.perf_counter() - started < 3


@pytest.mark.slow
def test_a_hub_that_never_answers_costs_a_process_seconds(hanging, tmp_path):
    program = textwrap.dedent(
        """
        import sys, time
        from pipeline.evaluation import tasks
        from data_prep.files import InputError
        started = time.perf_counter()
        manager, names = tasks.find(["webquestions", "natural_questions"], None, {})
        for name in names:
            try:
                tasks.load(manager, name)
            except InputError as error:
                print(error)
        print(time.perf_counter() - started, file=sys.stderr)
        """
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "http", "HTTP"))}
    environment |= {"HF_ENDPOINT": hanging, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("which cannot be reached") == 2
    assert float(done.stderr.split()[-1]) < 6  # one wait of 3 s, though two tasks ask
