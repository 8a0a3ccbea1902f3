"""Evaluation during training: what is scored and logged, what it costs, and that training does not notice it."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
from distributed.session import run_commands
from tiny_runs import BATCH, GPT, architecture, write_config

from pipeline.cli import main
from pipeline.evaluation.harness import PipelineLM

EVERY_THIRD = {"every_tokens": 3 * BATCH, "tasks": ["copies"], "limit": 4, "shots": [0, 2], "time_share": 1.0}


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory) -> Path:
    """Choices, answers that are written and sampled, and texts whose likelihood shows any change of the weights."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, count in (("train", 4), ("test", 6)):
        rows = [{"q": f"Copy {split} {i}:", "gold": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    common |= {"fewshot_split": "train", "doc_to_text": "{{q}}", "tag": "tried", "metadata": {"version": 1}}
    choice = {
        "task": "copies",
        "output_type": "multiple_choice",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "gold",
    }
    written = {
        "task": "written", "output_type": "generate_until", "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    told = {
        "task": "told", "output_type": "loglikelihood", "doc_to_target": " {{q}} again",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    }  # fmt: skip
    for task in (choice, written, told):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(common | task))
    return folder


def settings(tasks_folder: Path, **options) -> dict:
    options = EVERY_THIRD | {"include": str(tasks_folder)} | options
    return {f"few_shot__{name}": value for name, value in options.items()}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def losses(run: Path) -> dict[int, str]:
    return {int(row["step"]): row["train/loss"] for row in rows(run) if row["train/loss"]}


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluation" / "in_loop.jsonl").read_text().splitlines()]


def fit(folder: Path, tokens: Path, model: dict, *arguments: str, **overrides) -> Path:
    config = write_config(folder / "given.yaml", tokens, model, **overrides)
    assert main(["fit", "--config", str(config), *arguments]) == 0
    return folder / "run"


FAMILIES = {
    "gpt": (GPT | {"init_args": GPT["init_args"] | {"dropout": 0.1}}, {}),
    "lstm": (architecture("LSTMConfig", layers=2, dropout=0.1), {"data__order": "stream"}),
}


@pytest.mark.parametrize("family", ["gpt", pytest.param("lstm", marks=pytest.mark.slow)])
def test_training_is_the_same_bit_for_bit_with_and_without_it(family, tokens_folder, tasks_folder, tmp_path):
    model, options = FAMILIES[family]
    options = options | {"model__ema_half_life_tokens": 4 * BATCH}
    without = fit(tmp_path / "without", tokens_folder, model, **options)
    asked = settings(tasks_folder, tasks=["copies", "written", "told"], averaged=True)
    used = fit(tmp_path / "with", tokens_folder, model, **options, **asked)
    assert losses(used) == losses(without)
    assert [row["val/loss"] for row in rows(used)][-1:] == [row["val/loss"] for row in rows(without)][-1:]
    assert [line["step"] for line in journal(used)] == [3, 6, 9]


def test_scores_are_logged_with_their_step_and_their_share_of_the_time(
    tokens_folder, tasks_folder, tmp_path, monkeypatch
):
    slept, perform = [], PipelineLM.perform

    def slowly(self, work):
        time.sleep(0.3)
        slept.append(0.3)
        return perform(self, work)

    monkeypatch.setattr(PipelineLM, "perform", slowly)
    run = fit(tmp_path, tokens_folder, GPT, **settings(tasks_folder))
    lines = journal(run)
    for line in lines:
        assert line["tokens"] == line["step"] * BATCH
        assert 0 < line["share"] < 1
        scores = {
            (row["task"], row["shots"], row["metric"]): row for row in line["scores"] if row["scoring"] == "harness"
        }
        for shots in (0, 2):
            row = scores["copies", shots, "acc"]
            assert row["n"] == 4
            assert row["chance"] == 0.5
            [logged] = [each for each in rows(run) if int(each["step"]) == line["step"] and each["time/few_shot"]]
            assert float(logged[f"few_shot/copies@{shots}/acc"]) == row["score"]
    # Seconds are of training alone.
    assert len(slept) >= 6
    assert float(rows(run)[-1]["seconds"]) < sum(slept)


@pytest.mark.slow
def test_the_scores_are_those_of_evaluate_on_the_same_weights(tokens_folder, tasks_folder, tmp_path):
    run = fit(
        tmp_path, tokens_folder, GPT, trainer__precision="32-true", checkpoint__keep_early=True, checkpoint__every_tokens=2 * BATCH,
        **settings(tasks_folder, every_tokens=8 * BATCH, tasks=["copies", "written", "told"], limit=None),
    )  # fmt: skip
    arguments = ["--run", str(run), "--checkpoint", str(run / "checkpoints" / "step-00000008")]
    arguments += ["--include", str(tasks_folder), "--tasks", "copies,written,told", "--shots", "0,2"]
    assert main(["evaluate", *arguments]) == 0
    scores = json.loads((run / "evaluation" / "results.json").read_text())["pipeline"]["scores"]
    expected = {(row["task"], row["shots"], row["metric"]): row["score"] for row in scores}
    [line] = journal(run)
    for row in line["scores"]:
        assert row["score"] == pytest.approx(expected[row["task"], row["shots"], row["metric"]]), row


def test_one_that_is_due_waits_until_it_fits_its_share_of_the_time(tokens_folder, tasks_folder, tmp_path):
    asked = settings(tasks_folder, every_tokens=BATCH, time_share=0.001)
    run = fit(tmp_path, tokens_folder, GPT, **asked)
    # The first says how long one takes; the next would come after a thousand times as long.
    assert [line["step"] for line in journal(run)] == [1]


@pytest.mark.slow
def test_a_run_that_goes_on_makes_up_what_a_kill_prevented(tokens_folder, tasks_folder, tmp_path):
    asked = settings(tasks_folder, every_tokens=4 * BATCH) | {"checkpoint__every_tokens": 4 * BATCH}
    whole = fit(tmp_path / "whole", tokens_folder, GPT, **asked)
    stopped = fit(tmp_path / "cut", tokens_folder, GPT, "--trainer.max_steps", "4", **asked)
    path = stopped / "evaluation" / "in_loop.jsonl"
    path.unlink()  # as if it had been killed in the middle of the evaluation
    config = str(tmp_path / "cut" / "given.yaml")
    assert main(["fit", "--config", config, "--ckpt_path", "last"]) == 0
    assert losses(stopped) == losses(whole)
    assert [(line["step"], line["scores"]) for line in journal(stopped)] == [
        (line["step"], line["scores"]) for line in journal(whole)
    ]


@pytest.mark.slow
def test_a_signal_ends_it_at_the_next_batch_and_it_is_made_first_when_the_run_goes_on(
    tokens_folder, tasks_folder, tmp_path, monkeypatch
):
    asked = settings(tasks_folder, every_tokens=4 * BATCH, batch_tokens=16)
    whole = fit(tmp_path / "whole", tokens_folder, GPT, **asked)
    config = str(write_config(tmp_path / "cut" / "given.yaml", tokens_folder, GPT, **asked))
    batches, perform = [], PipelineLM.perform

    def interrupted(self, work):
        batches.append(work)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return perform(self, work)

    with monkeypatch.context() as patched:
        patched.setattr(PipelineLM, "perform", interrupted)
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", config])
    assert end.value.code == 128 + signal.SIGTERM
    assert len(batches) == 2
    stopped = tmp_path / "cut" / "run"
    assert not (stopped / "evaluation").exists()
    assert main(["fit", "--config", config, "--ckpt_path", "last"]) == 0
    assert losses(stopped) == losses(whole)
    assert [(line["step"], line["scores"]) for line in journal(stopped)] == [
        (line["step"], line["scores"]) for line in journal(whole)
    ]


def test_an_evaluation_that_fails_does_not_end_training(tokens_folder, tasks_folder, tmp_path, capsys):
    run = fit(tmp_path, tokens_folder, GPT, **settings(tasks_folder, shots=[30], every_tokens=5 * BATCH))
    assert len(losses(run)) == 10
    assert capsys.readouterr().err.count("failed, and training goes on: Task 'copies' has 4 examples") == 2


@pytest.mark.slow
def test_training_on_two_ranks_is_the_same_too_under_every_strategy(tokens_folder, tasks_folder, tmp_path):
    model = FAMILIES["gpt"][0]
    asked = settings(tasks_folder, tasks=["copies", "written", "told"], batch_tokens=64, limit=None)
    kinds = {"without": {}, "with": asked, "averaged": asked | {"few_shot__averaged": True}}
    cases = [
        ("ddp", "without"),
        ("ddp", "with"),
        ("zero2", "without"),
        ("zero2", "averaged"),
        ("zero3", "without"),
        ("zero3", "with"),
    ]
    commands = []
    for strategy, kind in cases:
        config = write_config(
            tmp_path / f"{strategy}-{kind}" / "given.yaml", tokens_folder, model, trainer__strategy=strategy, trainer__devices=2,
            trainer__accelerator="cpu", data__micro_batch=4, model__ema_half_life_tokens=4 * BATCH, **kinds[kind],
        )  # fmt: skip
        commands.append(["fit", "--config", str(config)])
    output = run_commands(commands, 2)
    assert "Traceback" not in output
    for strategy, kind in cases:
        if kind == "without":
            continue
        run = tmp_path / f"{strategy}-{kind}" / "run"
        assert losses(run) == losses(tmp_path / f"{strategy}-without" / "run"), strategy
        assert [line["step"] for line in journal(run)] == [3, 6, 9]


@pytest.mark.slow
def test_two_ranks_score_what_one_process_scores_on_their_checkpoint(tokens_folder, tasks_folder, tmp_path):
    asked = settings(tasks_folder, tasks=["told"], every_tokens=8 * BATCH, batch_tokens=64, limit=None)
    strategies, commands = ("ddp", "zero2", "zero3"), []
    for strategy in strategies:
        config = write_config(
            tmp_path / strategy / "given.yaml", tokens_folder, GPT, trainer__strategy=strategy, trainer__devices=2,
            trainer__accelerator="cpu", trainer__precision="32-true", data__micro_batch=4, checkpoint__keep_early=True, **asked,
        )  # fmt: skip
        commands.append(["fit", "--config", str(config)])
    run_commands(commands, 2)
    for strategy in strategies:
        run = tmp_path / strategy / "run"
        arguments = ["--run", str(run), "--checkpoint", str(run / "checkpoints" / "step-00000008"), "--shots", "0,2"]
        assert main(["evaluate", *arguments, "--include", str(tasks_folder), "--tasks", "told"]) == 0
        scores = json.loads((run / "evaluation" / "results.json").read_text())["pipeline"]["scores"]
        expected = {(row["shots"], row["metric"]): row["score"] for row in scores}
        [line] = journal(run)
        assert len(line["scores"]) >= 2
        for row in line["scores"]:
            assert row["score"] == pytest.approx(expected[row["shots"], row["metric"]], rel=1e-4), strategy


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        # The harness's thousands of names are looked through first.
        pytest.param({"tasks": ["copeis"]}, "no task 'copeis': the nearest names are copies", marks=pytest.mark.slow),
        ({"time_share": 0}, "few_shot.time_share is 0"),
        ({"averaged": True}, "keeps no average of its weights: set model.ema_half_life_tokens"),
        ({"data": {"webquestions": "/nowhere.jsonl"}, "tasks": ["webquestions"]}, "/nowhere.jsonl"),
        ({"data": {"webquestions:shown": "/nowhere.jsonl"}}, "few_shot.data names 'webquestions:shown'"),
        ({"shots": []}, "few_shot.shots is []"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_before_training(options, sentence, tokens_folder, tasks_folder, tmp_path, capsys):
    config = write_config(tmp_path / "given.yaml", tokens_folder, GPT, **settings(tasks_folder, **options))
    try:
        status = main(["fit", "--config", str(config)])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "metrics.csv").exists()
