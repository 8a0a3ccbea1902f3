"""Signals to whole process groups, as Slurm sends them: from the first moment of a process to its last, with all that it has started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import BATCH, GPT, write_config
from wandb.proto.wandb_internal_pb2 import Record

from pipeline import run_state
from pipeline.checkpoint import open_state
from pipeline.step_records import read_rows
from pipeline.wandb_files import stored_records, stored_rows

pytestmark = pytest.mark.slow

USR1, TERM = signal.SIGUSR1, signal.SIGTERM
STEPS = 60
SLOW = [{"class_path": "stopping.SlowSteps", "init_args": {"seconds": 0.05}}]


class Fit:
    """A run in its own process group, as a step of a job is."""

    def __init__(self, folder: Path, tokens: Path, *options: str, callbacks: list | None = None, **overrides):
        self.run = folder / "run"
        path = write_config(
            folder / "config.yaml", tokens, GPT, trainer__callbacks=callbacks or [], data__total_tokens=STEPS * BATCH,
            data__validate_every_tokens=20 * BATCH, **overrides,
        )  # fmt: skip
        self.command = [sys.executable, "-m", "pipeline", "fit", "--config", str(path), "--ckpt_path", "last", *options]
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def stop(self, process: subprocess.Popen, *numbers: int, group: bool = True) -> str:
        """Send signals, half a second apart, and wait for the end; what was printed."""
        try:
            for number in numbers:
                os.killpg(process.pid, number) if group else process.send_signal(number)
                time.sleep(0.5)
            return process.communicate(timeout=120)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def after(self, process: subprocess.Popen, rows: int) -> None:
        """Wait until so many more rows are logged."""
        before = len(read_rows(self.run / "metrics.csv"))
        while len(read_rows(self.run / "metrics.csv")) < before + rows:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)

    def finish(self) -> list[tuple[str, ...]]:
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return [(row["step"], row["train/loss"], row["val/loss"]) for row in read_rows(self.run / "metrics.csv")]


@pytest.fixture(scope="module")
def whole(tokens_folder, tmp_path_factory) -> list[tuple[str, ...]]:
    rows = Fit(tmp_path_factory.mktemp("whole"), tokens_folder).finish()
    assert len(rows) == STEPS + 3
    return rows


def notes_the_warning(process: subprocess.Popen) -> bool:
    """Whether the process has blocked SIGUSR1, for the thread that waits for it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [blocked] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk")]
    return bool(blocked & 1 << (USR1 - 1))


def test_signals_from_the_first_moment_on_end_in_order_and_lose_nothing(tokens_folder, tmp_path, whole):
    fit = Fit(tmp_path, tokens_folder)
    for delay in (0.0, 0.5, 1.5, 2.5, 3.5, 4.5):
        process = fit.start()
        while not notes_the_warning(process):
            time.sleep(0.001)
        time.sleep(delay)
        output = fit.stop(process, USR1, TERM)
        assert process.returncode == 138, output
        assert "Stopped by SIGUSR1" in output
        assert "Traceback" not in output
        assert [end["code"] for end in run_state.ends(fit.run)] == [138]
        if (fit.run / "checkpoints").exists():
            open_state((fit.run / "checkpoints" / "last.ckpt").resolve()).verify()
    assert fit.finish() == whole


@pytest.mark.parametrize("numbers", [(USR1,), (TERM,), (USR1, TERM, USR1)], ids=["warning", "term", "both"])
def test_the_tracker_s_service_lives_on_and_its_file_is_whole(numbers, tokens_folder, tmp_path, whole):
    fit = Fit(tmp_path, tokens_folder, wandb__mode="offline", callbacks=SLOW)
    process = fit.start()
    fit.after(process, 8)
    output = fit.stop(process, *numbers)
    assert process.returncode == 128 + numbers[0], output
    assert "Traceback" not in output
    logged = {row["step"] for row in read_rows(fit.run / "metrics.csv")}
    assert steps_sent(fit.run) == {int(step) for step in logged}
    fit = Fit(tmp_path, tokens_folder, wandb__mode="offline")
    assert fit.finish() == whole
    assert steps_sent(fit.run) == set(range(1, STEPS + 1))


def steps_sent(run: Path) -> set[int]:
    """The steps in all offline files of a run; each must end as wandb ends a file."""
    folders = sorted((run / "wandb").glob("offline-run-*"))
    for path in (path for folder in folders for path in folder.glob("run-*.wandb")):
        deadline = time.monotonic() + 10  # wandb's service may still write when the run has ended.
        while not any(Record.FromString(content).HasField("exit") for content in stored_records(path)):
            assert time.monotonic() < deadline, f"{path} has no end"
            time.sleep(0.05)
    return {int(row["_step"]) for folder in folders for row in stored_rows(folder)}


@pytest.mark.parametrize("group", [True, False], ids=["group", "first process"])
def test_ranks_that_the_first_process_started_end_with_it(group, tokens_folder, tmp_path):
    """Lightning kills the first process when one that it started ends with a status before it."""
    options = ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    fit = Fit(tmp_path, tokens_folder, *options, callbacks=SLOW, data__micro_batch=4, wandb__mode="offline")
    process = fit.start()
    fit.after(process, 8)
    output = fit.stop(process, USR1, group=group)
    assert process.returncode == 138, output
    assert output.count("Stopped by SIGUSR1 after step") == 1
    assert [end["code"] for end in run_state.ends(fit.run)] == [138, 138]
    rows = fit.finish()
    assert [row[0] for row in rows if row[1]] == [str(step) for step in range(1, STEPS + 1)]


def test_a_second_ctrl_c_stops_at_once(tokens_folder, tmp_path):
    slow = [{"class_path": "stopping.SlowSteps", "init_args": {"seconds": 5.0}}]
    fit = Fit(tmp_path, tokens_folder, callbacks=slow, data__micro_batch=16)
    process = fit.start()
    while not (fit.run / "training-began").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    output = fit.stop(process, signal.SIGINT, signal.SIGINT)
    assert time.monotonic() - began < 4.5
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not [*(fit.run / "checkpoints").glob("step-*")]


def test_a_compiler_at_work_lives_through_the_warning(tokens_folder, tmp_path):
    fit = Fit(tmp_path, tokens_folder, "--model.compile", "true", callbacks=SLOW)
    fit.environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    process = fit.start()
    while "cc1plus" not in names_of_the_group(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    output = fit.stop(process, USR1)
    assert process.returncode == 138, output
    assert "Stopped by SIGUSR1 after step" in output


def names_of_the_group(group: int) -> set[str]:
    """Of the programs that run in a process group."""
    listed = subprocess.run(["ps", "-o", "comm=", "-g", str(group)], capture_output=True, text=True)
    return set(listed.stdout.split())
