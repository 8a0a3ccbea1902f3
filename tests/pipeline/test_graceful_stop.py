"""Stopping and going on: at every place of a run, by every signal and by the clock, the continued run is the one that never stopped."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import BATCH, GPT, LSTM, write_config

from pipeline import exit_codes, run_state, signals
from pipeline.callbacks.wall_time import WallTime, end_of_job
from pipeline.checkpoint import open_state, read_weights
from pipeline.cli import main
from pipeline.state_files import FolderWriter

USR1, TERM, INT = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT
OF_THE_CLOCK = ("seconds", "time/", "memory/", "train/tokens_per_second", "train/mfu", "train/data_wait")


@pytest.fixture(autouse=True)
def _handlers_are_given_back():
    yield
    signals.HELD.release(list(signals.HELD.held))


def config(folder: Path, tokens: Path, architecture: dict = GPT, *callbacks: dict, **overrides) -> Path:
    """Ten steps of two micro-batches, validated after five and ten, with a record of the samples."""
    samples = {"class_path": "pipeline.callbacks.sample_record.SampleRecord", "init_args": {"folder": str(folder)}}
    return write_config(
        folder / "config.yaml", tokens, architecture, trainer__callbacks=[*callbacks, samples],
        data__validate_every_tokens=5 * BATCH, **overrides,
    )  # fmt: skip


def sends(*numbers: int, **place) -> dict:
    return {"class_path": "stopping.Sends", "init_args": {"numbers": [int(n) for n in numbers], **place}}


def fit(path: Path) -> int:
    """Train, as `python -m pipeline` does; the exit status."""
    signals.HELD.hold(USR1, TERM)
    try:
        return main(["fit", "--config", str(path), "--ckpt_path", "last"])
    except SystemExit as end:
        return int(end.code or 0)


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock says."""
    with (folder / "run" / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if value and not name.startswith(OF_THE_CLOCK)}
            for row in csv.DictReader(file)
        ]


def outcome(folder: Path) -> dict:
    """All that must not depend on whether a run was stopped."""
    checkpoints = folder / "run" / "checkpoints"
    best, last = (open_state((checkpoints / f"{name}.ckpt").resolve()) for name in ("best", "last"))
    return {
        "rows": rows(folder),
        "samples": [json.loads(line) for line in (folder / "samples-00000.jsonl").read_text().splitlines()],
        "weights": {name: values.tolist() for name, values in read_weights(last).items()},
        "best": best.path.name,
        "validation_due": last.record.get("validation_due"),
    }


@pytest.fixture(scope="module")
def whole(tokens_folder, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    assert fit(config(folder, tokens_folder)) == 0
    result = outcome(folder)
    assert [row["step"] for row in result["rows"]] == [*"12345", "5", *"6789", "10", "10"]
    return result


PLACES = {
    "in the first micro-batch of a step": (sends(USR1, hook="on_train_batch_start", step=3), 4, False),
    "in the second, by SIGTERM": (sends(TERM, hook="on_before_backward", step=3, times=1), 4, False),
    "in a step that a validation follows": (sends(USR1, hook="on_train_batch_start", step=4), 5, True),
    "in a validation": (sends(USR1, hook="on_validation_batch_end", step=5, times=2), 5, True),
    "in the last validation": (sends(TERM, hook="on_validation_batch_end", step=10, times=2), 10, True),
    "while a checkpoint is saved": (sends(USR1, hook="on_save_checkpoint", step=5), 5, False),
    "and again and again": (sends(USR1, TERM, USR1, TERM, INT, hook="on_train_batch_start", step=6), 7, False),
}


FAST = ("in a validation", "and again and again")


@pytest.mark.parametrize("place", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in PLACES])
def test_a_run_stopped_by_a_signal_goes_on_as_if_it_had_not_been(place, tokens_folder, tmp_path, whole, capfd):
    callback, step, due = PLACES[place]
    number = callback["init_args"]["numbers"][0]
    assert fit(config(tmp_path, tokens_folder, GPT, callback)) == 128 + number
    [end] = run_state.ends(tmp_path / "run")
    assert (end["code"], end["step"]) == (128 + number, step)
    assert f"Stopped by {signal.Signals(number).name} after step {step} of 10" in capfd.readouterr().out
    last = (tmp_path / "run" / "checkpoints" / "last.ckpt").resolve()
    assert last.name == f"step-{step:08d}"
    assert bool(open_state(last).record.get("validation_due")) == due
    assert fit(config(tmp_path, tokens_folder)) == 0
    assert outcome(tmp_path) == whole


@pytest.mark.slow
def test_a_stop_in_a_validation_that_is_being_made_up_leaves_it_due(tokens_folder, tmp_path, whole):
    callback = sends(USR1, hook="on_validation_batch_end", step=5, times=2)
    for _ in range(3):
        assert fit(config(tmp_path, tokens_folder, GPT, callback)) == 138
        assert [row["step"] for row in rows(tmp_path)] == [*"12345"]
    assert fit(config(tmp_path, tokens_folder)) == 0
    assert outcome(tmp_path) == whole


@pytest.mark.slow
def test_streams_stopped_in_a_validation_go_on_with_their_state(tokens_folder, tmp_path):
    once = tmp_path / "once"
    assert fit(config(once, tokens_folder, LSTM, data__order="stream", data__prefetch=0)) == 0
    again, callback = tmp_path / "again", sends(USR1, hook="on_validation_batch_end", step=5, times=1)
    assert fit(config(again, tokens_folder, LSTM, callback, data__order="stream", data__prefetch=0)) == 138
    assert fit(config(again, tokens_folder, LSTM, data__order="stream", data__prefetch=2)) == 0
    assert outcome(again) == outcome(once)


@pytest.mark.slow
def test_a_signal_during_an_asynchronous_save_waits_for_it(tokens_folder, tmp_path, monkeypatch, whole):
    write = FolderWriter.write

    def slowly(self, *args, **kwargs):
        time.sleep(1)
        write(self, *args, **kwargs)

    monkeypatch.setattr(FolderWriter, "write", slowly)
    # The save of step 5 is still being written when the signal comes, in the first batch after it.
    callback = sends(USR1, TERM, hook="on_train_batch_start", step=5)
    assert fit(config(tmp_path, tokens_folder, GPT, callback)) == 138
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.glob("step-*")} == {"step-00000005", "step-00000006"}
    assert not [*folder.glob(".*")]
    open_state(folder / "last.ckpt").verify()
    monkeypatch.undo()
    assert fit(config(tmp_path, tokens_folder)) == 0
    assert outcome(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["setup", "on_train_start"])
def test_a_signal_before_training_leaves_what_is_there(hook, tokens_folder, tmp_path, capfd, whole):
    assert fit(config(tmp_path, tokens_folder, GPT, sends(USR1, hook=hook))) == 138
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert fit(config(tmp_path, tokens_folder, GPT, sends(TERM, hook="on_train_batch_start", step=3))) == 143
    last = (tmp_path / "run" / "checkpoints" / "last.ckpt").resolve()
    before = {path: path.stat().st_mtime_ns for path in (last, *last.iterdir())}
    capfd.readouterr()
    # Steps count from the checkpoint only once it is loaded.
    step = 4 if hook == "on_train_start" else 0
    assert fit(config(tmp_path, tokens_folder, GPT, sends(USR1, hook=hook, step=step))) == 138
    assert "before the first step; nothing was trained" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (last, *last.iterdir())} == before
    assert fit(config(tmp_path, tokens_folder)) == 0
    assert outcome(tmp_path) == whole


# -- the clock


def test_a_run_stops_by_itself_before_its_time_is_up(tokens_folder, tmp_path, capfd, whole):
    slow = {"class_path": "stopping.SlowSteps", "init_args": {"seconds": 0.1}}
    limits = {"limit_seconds": 1.5, "reserve_seconds": 0.3}
    path = config(tmp_path, tokens_folder, GPT, slow)
    path.write_text(path.read_text() + f"wall_time: {limits}\n")
    assert fit(path) == exit_codes.OUT_OF_TIME
    assert "Stopped by the end of the wall time" in capfd.readouterr().out
    [end] = run_state.ends(tmp_path / "run")
    assert end["code"] == exit_codes.OUT_OF_TIME
    assert 1 <= end["step"] <= 7
    began = float((tmp_path / "run" / "training-began").read_text())
    saved = (tmp_path / "run" / "checkpoints" / f"step-{end['step']:08d}").stat().st_mtime
    assert saved < began + 1.5
    assert fit(config(tmp_path, tokens_folder)) == 0
    assert outcome(tmp_path) == whole


def test_the_end_is_the_job_s_or_an_earlier_one_that_is_given(monkeypatch, tmp_path):
    now = time.time()
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert WallTime().end(now) is None
    assert WallTime(limit_seconds=60).end(now) == now + 60
    told = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now + 30))
    assert WallTime(limit_seconds=60, ends_at=told).end(now) == int(now + 30)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now) + 600))
    # Slurm is asked first, since a limit may be changed while the job runs; its word at the start stands in.
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$*" = "--noheader --jobs 7 --format %e" ] && echo 2030-01-31T18:00:00\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert end_of_job("7") == time.mktime((2030, 1, 31, 18, 0, 0, 0, 0, -1))
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error' >&2; exit 1\n")
    assert end_of_job("7") == int(now) + 600
    assert WallTime(limit_seconds=60).end(now) == now + 60
    assert WallTime(forecast=False).end(now) is None


@pytest.mark.parametrize(
    ("setting", "what"), [("limit_seconds: -1", "must be positive"), ("ends_at: tomorrow", "must be a time such as")]
)
def test_a_wall_time_that_has_no_meaning_is_refused(setting, what, tokens_folder, tmp_path, capfd):
    path = config(tmp_path, tokens_folder)
    path.write_text(path.read_text() + f"wall_time: {{{setting}}}\n")
    assert fit(path) == exit_codes.REFUSED
    assert what in capfd.readouterr().err


# -- handlers


def test_what_a_training_process_starts_is_spared_the_warning_and_keeps_no_handler():
    signals.HELD.hold(USR1, TERM)
    child = subprocess.Popen(["sleep", "30"])
    child.send_signal(USR1)
    time.sleep(0.2)
    assert child.poll() is None
    child.terminate()
    assert child.wait(timeout=10) == -TERM
    forked = os.fork()
    if not forked:
        os.kill(os.getpid(), USR1)
        os.kill(os.getpid(), TERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == -TERM
    assert signals.HELD.received is None
