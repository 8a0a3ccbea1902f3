"""Ranks that stand still are named, with their stacks, and the run ends; what works, however long, is left alone."""

import signal
import sys
import time
from pathlib import Path

import pytest
from distributed.session import fit_command, start_ranks

from pipeline import exit_codes, run_state
from pipeline.callbacks.heartbeat import behind, describe, silent_ranks

BATCH = 512


def beat(rank: int, events: int, *, age: float = 0.0, phase: str = "backward pass", host: str = "n1") -> dict:
    now = time.time()
    return {
        "rank": rank, "ranks": 3, "host": host, "pid": 2**22 + 1, "started": 1, "step": 6, "batch": 2, "phase": phase,
        "events": events, "progress": now - 60, "time": now - age,
    }  # fmt: skip


def test_the_rank_behind_is_the_silent_one_else_the_one_that_got_least_far_else_none():
    level = [beat(0, 40), beat(1, 40), beat(2, 40)]
    assert behind(level, []) == []
    assert "no rank is behind" in describe(level, [], 3, "n1")
    late = [beat(0, 40), beat(1, 39, phase="forward pass", host="n2"), beat(2, 40)]
    assert behind(late, []) == [1]
    assert describe(late, [], 3, "n1") == (
        "The run stands still: rank 1 on n2 has been at 'forward pass' (step 7, micro-batch 2) for 60 s; "
        "ranks 0, 2 wait at 'backward pass' (step 7, micro-batch 2)."
    )
    stopped = [beat(0, 40), beat(2, 40, age=30)]
    silent = silent_ranks(stopped, 3, 15)
    assert silent == [1, 2]
    assert behind(stopped, silent) == [1, 2]
    sentence = describe(stopped, silent, 3, "n1")
    assert "rank 1 never gave a sign of life" in sentence
    assert "rank 2 on n1 gives no sign of life for 30 s (there is no such process any more), when it was at" in sentence


def command(folder: Path, tokens: Path, *callbacks: dict, ranks: int, timeout: float, **data) -> list[str]:
    config = {
        "trainer": {
            "default_root_dir": str(folder / "run"), "accelerator": "cpu", "devices": ranks, "precision": "32-true",
            "log_every_n_steps": 1, "enable_progress_bar": False, "callbacks": list(callbacks),
        },
        "model": {"architecture": {"class_path": "TransformerConfig", "init_args": {
            "vocab_size": 512, "context": 32, "layers": 2, "width": 32, "heads": 2,
        }}},
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 4, "total_tokens": 8 * BATCH,
            "validation_tokens": 2000, **data,
        },
        "wandb": {"mode": "disabled"},
        "watchdog": {"timeout_seconds": timeout, "beat_seconds": 0.5},
    }  # fmt: skip
    return fit_command(folder / "configuration", config)


HOW = {
    "asleep": "'forward pass' (step 4, micro-batch 1)",
    "stopped": "it was stopped (SIGSTOP)",
    "held": "in a call that keeps the interpreter to itself",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_the_rank_that_stands_still_is_named_with_its_stacks(how, tokens_folder, tmp_path):
    late = {
        "class_path": "stopping.StandsStill",
        "init_args": {"how": how, "hook": "on_before_backward", "step": 3, "rank": 1},
    }
    program = [sys.executable, "-m", "pipeline", *command(tmp_path, tokens_folder, late, ranks=2, timeout=8)]
    processes = start_ranks(program, 2)
    try:
        output, _ = processes[0].communicate(timeout=120)
        assert processes[0].returncode == exit_codes.HUNG, output
        if how == "asleep":
            more, _ = processes[1].communicate(timeout=20)
            assert processes[1].returncode == exit_codes.HUNG, more
            output += more
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert output.count("The run stands still: rank 1 on ") == 1
    assert HOW[how] in output
    assert "rank 0 wait at 'backward pass' (step 4, micro-batch " in output
    [first, *_] = run_state.ends(tmp_path / "run")
    assert first["code"] == exit_codes.HUNG
    assert "rank 1 on " in first["reason"]
    # The training thread of the one that waits is among its stacks, and so is the place where the other stands.
    assert "backward" in run_state.stack_file(tmp_path / "run", 0).read_text()
    if how != "stopped":
        assert "in act" in run_state.stack_file(tmp_path / "run", 1).read_text()
    beats = {beat["rank"]: beat for beat in run_state.heartbeats(tmp_path / "run")}
    assert beats[0]["step"] == 3
    # A rank that beats no more has said where it was at its last beat.
    assert beats[1]["step"] == 3 if how == "asleep" else beats[1]["step"] <= 3
    assert beats[1]["events"] < beats[0]["events"]


@pytest.mark.slow
def test_a_long_validation_and_a_slow_save_are_no_standstill(tokens_folder, tmp_path):
    """Each takes longer than the watchdog waits, of one rank only while the other has long been through with its part."""
    slow = {"class_path": "stopping.SlowBatches", "init_args": {"seconds": 1.2, "rank": 1}}
    save = {"class_path": "stopping.SlowWrites", "init_args": {"seconds": 9.0, "rank": 1}}
    program = [sys.executable, "-m", "pipeline", *command(tmp_path, tokens_folder, slow, save, ranks=2, timeout=7)]
    began = time.monotonic()
    processes = start_ranks(program, 2)
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert time.monotonic() - began > 8 * 1.2 + 9
    assert {beat["phase"] for beat in run_state.heartbeats(tmp_path / "run")} == {"ended"}
    assert not [*(tmp_path / "run" / "state" / "stacks").glob("rank-*")]


@pytest.mark.slow
def test_a_process_that_was_suspended_and_goes_on_is_left_alone(tokens_folder, tmp_path):
    slow = {"class_path": "stopping.SlowSteps", "init_args": {"seconds": 0.1}}
    program = [sys.executable, "-m", "pipeline", *command(tmp_path, tokens_folder, slow, ranks=1, timeout=5)]
    [process] = start_ranks(program, 1)
    try:
        while not (tmp_path / "run" / "training-began").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        time.sleep(8)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
