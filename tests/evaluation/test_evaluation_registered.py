"""Our runs as a model of lm-evaluation-harness: its command line and its Python interface, unchanged but for one name."""

import json
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from distributed.session import start_ranks
from lm_eval.tasks import TaskManager

import pipeline.evaluation.registered  # noqa: F401  makes the name known
from data_prep.files import InputError
from pipeline.evaluation.registered import main
from pipeline.evaluation.tasks import SHIPPED
from pipeline.evaluation.trained import BATCH_TOKENS, TrainedRun


@pytest.fixture
def task(tmp_path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for split, count in (("train", 4), ("test", 7)):
        rows = [{"q": f"Copy {split} {i}:", "gold": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "task": "copied", "dataset_path": "json", "test_split": "test", "fewshot_split": "train",
        "dataset_kwargs": {"data_files": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}},
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["yes", "no"], "doc_to_target": "gold",
    }  # fmt: skip
    (folder / "copied.yaml").write_text(json.dumps(fields))
    return folder


def likelihoods(results) -> list:
    return [sample["resps"] for sample in results["samples"]["copied"]]


def test_simple_evaluate_knows_a_run_by_its_folder(run_directory, task):
    manager = TaskManager(include_path=str(task), include_defaults=False)
    found = {}
    for name, arguments in {
        "as text": f"run={run_directory},checkpoint=best,batch_tokens=100",
        "as a table": {"run": str(run_directory)},
    }.items():
        found[name] = lm_eval.simple_evaluate(
            model="pipeline", model_args=arguments, tasks=["copied"], num_fewshot=2, task_manager=manager, batch_size=1,
            device="cuda:0", bootstrap_iters=0,
        )  # fmt: skip
    own = lm_eval.simple_evaluate(
        model=TrainedRun(run_directory), tasks=["copied"], num_fewshot=2, task_manager=manager, bootstrap_iters=0
    )
    for results in found.values():
        assert results["config"]["model_step"] == 7
        for a, b in zip(likelihoods(results), likelihoods(own), strict=True):
            assert [x[0][0] for x in a] == pytest.approx([x[0][0] for x in b], abs=1e-4)


def test_a_batch_size_is_rows_of_the_longest_input(run_directory):
    assert TrainedRun(run_directory, batch_size=1).batch_tokens == BATCH_TOKENS
    assert TrainedRun(run_directory, batch_size="auto").batch_tokens == BATCH_TOKENS
    assert TrainedRun(run_directory, batch_size=8).batch_tokens == 8 * 48
    assert TrainedRun(run_directory, batch_size=8, batch_tokens=100).batch_tokens == 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs a run: give --model_args run=FOLDER"),
        ({"run": "/nowhere"}, "There is no run directory /nowhere"),
        ({"run": "{run}", "checkpoint": "first"}, "There is no checkpoint first"),
        ({"run": "{run}", "batch_token": 9}, "does not know batch_token: it takes run, checkpoint"),
        ({"run": "{run}", "batch_tokens": 0}, "batch_tokens is 0"),
        ({"run": "{run}", "device": "tpu9"}, "device tpu9 cannot be used"),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_sentence(arguments, sentence, run_directory):
    arguments = {key: str(run_directory) if value == "{run}" else value for key, value in arguments.items()}
    with pytest.raises(InputError, match=sentence):
        TrainedRun(**arguments)


def test_an_error_is_one_line_and_status_2(monkeypatch, capsys):
    def refuses():
        raise InputError("There is no run directory /nowhere")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", refuses)
    assert main() == 2
    assert capsys.readouterr().err == "error: There is no run directory /nowhere\n"


@pytest.mark.slow
def test_the_command_line_scores_a_run_on_any_number_of_ranks_alike(run_directory, task, tmp_path):
    arguments = ["--model", "pipeline", "--model_args", f"run={run_directory},batch_tokens=100", "--tasks", "copied"]
    arguments += ["--include_path", str(task), "--num_fewshot", "2", "--log_samples"]
    script, found = Path(sys.executable).with_name("lm_eval"), []
    for size in (1, 2):
        processes = start_ranks([str(script), *arguments, "--output_path", str(tmp_path / f"out{size}")], size)
        try:
            outputs = [process.communicate(timeout=200)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * size, outputs
        assert "copied" in outputs[0]
        [samples] = (tmp_path / f"out{size}").rglob("samples_*.jsonl")
        found.append(sorted((json.loads(line) for line in samples.open()), key=lambda sample: sample["doc_id"]))
    for one, two in zip(*found, strict=True):
        assert one["arguments"] == two["arguments"]
        assert [float(each[0][0]) for each in one["resps"]] == pytest.approx(
            [float(each[0][0]) for each in two["resps"]], abs=1e-4
        )


@pytest.mark.slow
def test_the_shipped_tasks_run_there_too(run_directory, tmp_path):
    arguments = ["--model", "pipeline", "--model_args", f"run={run_directory}", "--tasks", "two_digit_addition"]
    arguments += ["--include_path", str(SHIPPED), "--limit", "3"]
    command = [sys.executable, "-m", "pipeline.evaluation.registered", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(lm_eval.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "two_digit_addition" in done.stdout


@pytest.mark.slow
def test_in_a_program_under_torchrun_the_harness_divides_the_questions(run_directory, task, tmp_path):
    script = tmp_path / "dividing.py"
    script.write_text(
        f"import json, sys; sys.path.insert(0, {str(SHIPPED.parents[1])!r})\n"
        "import lm_eval, pipeline.evaluation.registered\n"
        "from lm_eval.tasks import TaskManager\n"
        f"manager = TaskManager(include_path={str(task)!r}, include_defaults=False)\n"
        f"found = lm_eval.simple_evaluate(model='pipeline', model_args={{'run': {str(run_directory)!r}}}, tasks=['copied'],\n"
        "    num_fewshot=0, task_manager=manager, bootstrap_iters=0)\n"
        "if found: print('FOUND', json.dumps([found['results']['copied']['acc,none'],\n"
        "    sorted((s['doc_id'], [r[0][0] for r in s['resps']]) for s in found['samples']['copied'])]))\n"
    )
    found = []
    for size in (1, 2):
        processes = start_ranks([sys.executable, str(script)], size)
        try:
            outputs = [process.communicate(timeout=200)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert all(process.returncode == 0 for process in processes), outputs
        [line] = [line for output in outputs for line in output.splitlines() if line.startswith("FOUND")]
        found.append(json.loads(line.removeprefix("FOUND ")))
    assert found[0][0] == found[1][0]
    for (a, one), (b, two) in zip(found[0][1], found[1][1], strict=True):
        assert a == b
        assert one == pytest.approx(two, abs=1e-4)
