"""What wandb is told of a run over all its attempts: one id, steps that only grow, none missing; and logs that are cut where it goes back."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from spoilers import PowerCut
from tiny_runs import BATCH, GPT, write_config
from wandb.proto.wandb_internal_pb2 import Record

from pipeline.cli import main
from pipeline.step_records import append_line, keep_lines, read_lines
from pipeline.wandb_files import stored_records, stored_rows


def configured(folder: Path, tokens: Path, *callbacks: dict, **overrides) -> Path:
    settings = {
        "trainer__accelerator": "cpu", "trainer__precision": "32-true", "checkpoint__every_tokens": 3 * BATCH,
        "wandb__mode": "offline", "data__validate_every_tokens": 4 * BATCH,
    }  # fmt: skip
    return write_config(folder / "given.yaml", tokens, GPT, trainer__callbacks=list(callbacks), **settings | overrides)


def cut(step: int) -> dict:
    return {"class_path": "spoilers.CutAt", "init_args": {"step": step, "starts": 1}}


def fit(config: Path, *options: str) -> int:
    try:
        return main(["fit", "--config", str(config), "--ckpt_path", "last", *options])
    finally:
        wandb.finish()
        for file in (config.parent / "run").glob("wandb/offline-run-*/run-*.wandb"):
            wait_for_the_end_of(file)


def wait_for_the_end_of(file: Path) -> None:
    """wandb's service may still be writing when `finish` returns."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not any(
        Record.FromString(content).HasField("exit") for content in stored_records(file)
    ):
        time.sleep(0.05)


def attempts(run: Path) -> list[list[dict]]:
    """The rows of each attempt, as wandb has written them."""
    return [list(stored_rows(folder)) for folder in sorted((run / "wandb").glob("offline-run-*"))]


def ids(run: Path) -> set[str]:
    return {path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}


def columns(run: Path, name: str) -> dict[int, float]:
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def assert_one_run(run: Path, steps: int) -> None:
    """One id, every step once and in order, and the figures of metrics.csv."""
    assert ids(run) == {(run / "wandb-id").read_text().strip()}
    rows = [row for attempt in attempts(run) for row in attempt]
    assert [row["_step"] for row in rows] == [*range(1, steps + 1)]
    assert all(row["trainer/global_step"] == row["_step"] for row in rows)
    for name in ("train/loss", "train/grad_norm"):
        assert {row["_step"]: row[name] for row in rows if name in row} == columns(run, name)
    assert [*columns(run, "val/loss").values()] == [row["val/loss"] for row in rows if "val/loss" in row]


def test_an_offline_run_reads_back_as_it_was_logged(tmp_path):
    chance = random.Random(0)
    logged = [{"a": chance.random(), "text": "x" * chance.choice([1, 100, 40_000]), "b/c": step} for step in range(300)]
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        for step, row in enumerate(logged):
            run.log(row, step=step)
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    [file] = folder.glob("run-*.wandb")
    wait_for_the_end_of(file)
    found = list(stored_rows(folder))
    assert [{name: row[name] for name in ("a", "text", "b/c")} for row in found] == logged
    assert [row["_step"] for row in found] == [*range(300)]
    # A kill cuts the file anywhere.
    content = file.read_bytes()
    for size in (0, 3, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        rows = list(stored_rows(folder))
        assert [row["_step"] for row in rows] == [*range(len(rows))]


@pytest.mark.slow
def test_over_cut_attempts_wandb_has_one_run_with_every_step_once(tokens_folder, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(PowerCut):
        fit(configured(tmp_path, tokens_folder, cut(6)))
    assert f"to upload it: wandb sync {run}/wandb/offline-run-*" in capsys.readouterr().out
    [file] = run.glob("wandb/offline-run-*/run-*.wandb")
    rows = list(stored_rows(file.parent))
    assert rows[-1]["_step"] == 5
    # A power cut takes what was not written yet: here all after step 2.
    content = file.read_bytes()
    for size in range(len(content), 0, -1):
        file.write_bytes(content[:size])
        if len(list(stored_rows(file.parent))) == 2:
            break
    time.sleep(1.1)  # Its folders are named by the second.
    with pytest.raises(PowerCut):
        fit(configured(tmp_path, tokens_folder, cut(9)))
    time.sleep(1.1)
    assert fit(configured(tmp_path, tokens_folder)) == 0
    assert_one_run(run, 10)
    first, second, third = attempts(run)
    assert [row["_step"] for row in second] == [3, 4, 5, 6, 7, 8]
    # From the checkpoint of step 4, of which wandb had 2.
    assert (second[2]["restored_from"], second[2]["attempt"]) == (4, 2)
    # From step 8, which was validated, on; wandb had that already.
    assert [row["_step"] for row in third] == [9, 10]
    assert (third[0]["restored_from"], third[0]["attempt"]) == (8, 3)
    assert not any("attempt" in row for row in [*first, *second[:2], *second[3:]])


def test_a_run_directory_without_its_id_goes_on_under_that_of_the_checkpoint(tokens_folder, tmp_path):
    with pytest.raises(PowerCut):
        fit(configured(tmp_path, tokens_folder, cut(6)))
    name = tmp_path / "run" / "wandb-id"
    id = name.read_text()
    name.unlink()
    time.sleep(1.1)
    assert fit(configured(tmp_path, tokens_folder)) == 0
    assert name.read_text() == id
    assert_one_run(tmp_path / "run", 10)


@pytest.mark.slow
def test_where_wandbs_own_files_are_gone_no_step_is_sent_again(tokens_folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(PowerCut):
        fit(configured(tmp_path, tokens_folder, cut(6)))
    [folder] = run.glob("wandb/offline-run-*")
    folder.rename(tmp_path / "synced")
    assert fit(configured(tmp_path, tokens_folder)) == 0
    assert [row["_step"] for [*rows] in attempts(run) for row in rows] == [6, 7, 8, 9, 10]


@pytest.mark.slow
def test_going_back_over_a_spike_sends_no_step_twice_and_says_so(tokens_folder, tmp_path):
    poison = {"class_path": "spoilers.Poison", "init_args": {"steps": [8]}}
    settings = {"spikes__policy": "roll_back", "spikes__back_steps": 2, "spikes__skip_steps": 4}
    assert fit(configured(tmp_path, tokens_folder, poison, **settings)) == 0
    [rows] = attempts(tmp_path / "run")
    assert [row["_step"] for row in rows] == [*range(1, 11)]
    assert (rows[7]["restored_from"], rows[7]["attempt"], rows[7]["train/skipped"]) == (4, 2, 1.0)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_one_run_to_wandb(tokens_folder, tmp_path):
    config = configured(tmp_path, tokens_folder, data__total_tokens=150 * BATCH, data__validate_every_tokens=50 * BATCH)
    command = [sys.executable, "-m", "pipeline", "fit", "--config", str(config), "--ckpt_path", "last"]
    moments, metrics = random.Random(0), tmp_path / "run" / "metrics.csv"
    # Not by the service that this process may have started, which would not be killed with it.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | {
        "OMP_NUM_THREADS": "1"
    }
    for _ in range(4):
        began = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) <= began + 1):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, env=environment).returncode == 0
    assert len(attempts(tmp_path / "run")) == 5
    assert_one_run(tmp_path / "run", 150)


# -- files with a line a step


def test_lines_are_cut_where_a_run_goes_back_and_a_torn_one_goes(tmp_path):
    path = tmp_path / "record.jsonl"
    for step in (1, 2, 2, 3, 4):
        append_line(path, {"step": step, "name": "größe"})
    with path.open("a") as file:
        file.write('{"step": 5, "na')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 2, 3, 4]
    keep_lines(path, lambda line: line["step"] <= 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": step, "name": "größe"} for step in (1, 2, 2)
    ]
    keep_lines(tmp_path / "none.jsonl", lambda line: True)
    assert not (tmp_path / "none.jsonl").exists()


def test_no_sample_is_recorded_twice_under_one_step(tokens_folder, tmp_path):
    recorder = {
        "class_path": "pipeline.callbacks.sample_record.SampleRecord",
        "init_args": {"folder": str(tmp_path / "samples")},
    }
    settings = {"wandb__mode": "disabled", "data__micro_batch": 4}
    with pytest.raises(PowerCut):
        fit(configured(tmp_path, tokens_folder, recorder, cut(6), **settings))
    assert fit(configured(tmp_path, tokens_folder, recorder, **settings)) == 0
    lines = read_lines(tmp_path / "samples" / "samples-00000.jsonl")
    assert [line["step"] for line in lines] == [step for step in range(1, 11) for _ in range(4)]
    samples = [number for line in lines for number, _ in line["samples"]]
    assert samples == [*range(160)]
