"""The supervisor: what it starts again, what it does not, and what it says of it; commands are small shell scripts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.files import InputError
from pipeline import exit_codes
from pipeline.slurm.attempts import Journal
from pipeline.slurm.supervisor import Supervisor

# Each time it is started, a script does what its next line says.
SCRIPT = """
count=$(cat count 2>/dev/null || echo 0); echo $((count + 1)) > count
eval "$(sed -n "$((count + 1))p" plan)"
"""


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, **options) -> tuple[int, int, list]:
        """Exit status, how often the command was started, and the journal."""
        Path("plan").write_text("\n".join(lines) + "\n")
        Path("count").unlink(missing_ok=True)
        supervisor = Supervisor(tmp_path / "run", ["sh", "-c", SCRIPT], wait_seconds=0, **options)
        code = supervisor.supervise()
        return code, int(Path("count").read_text()), Journal(tmp_path / "run").attempts()

    return run


def saved(step: int) -> str:
    return f"mkdir -p run/checkpoints/step-{step:08d}"


def test_a_run_that_ends_well_is_started_once(supervise):
    code, started, [attempt] = supervise("exit 0")
    assert (code, started, attempt.outcome) == (0, 1, "done")


def test_a_crash_is_followed_by_another_attempt(supervise):
    code, started, attempts = supervise(f"{saved(5)}; kill -9 $$", f"{saved(9)}; exit 0")
    assert (code, started) == (0, 2)
    assert [(a.outcome, a.code, a.from_step, a.to_step) for a in attempts] == [
        ("restarted", 137, 0, 5),
        ("done", 0, 5, 9),
    ]
    assert attempts[0].reason == "killed by SIGKILL"


def test_a_crash_loop_ends_after_so_many_restarts_without_progress_with_the_reason_in_one_place(supervise, capsys):
    code, started, attempts = supervise(*["exit 3"] * 9, max_restarts=2)
    assert (code, started) == (3, 3)
    assert attempts[-1].outcome == "failed"
    assert attempts[-1].reason == (
        "3 attempts in a row ended without a newer checkpoint than step 0; the last: exit status 3"
    )
    assert "3 attempts in a row" in capsys.readouterr().err


def test_progress_starts_the_count_anew(supervise):
    plan = ["exit 3", "exit 3", f"{saved(7)}; exit 3", "exit 3", "exit 3", "exit 0"]
    code, started, _ = supervise(*plan, max_restarts=2)
    assert (code, started) == (0, 6)


@pytest.mark.parametrize("code", [exit_codes.REFUSED, exit_codes.SPIKE_STOPPED, 130])
def test_what_starting_again_would_not_mend_ends_with_its_own_status(supervise, code):
    assert supervise(f"exit {code}", "exit 0")[:2] == (code, 1)


def test_what_a_rank_said_of_its_end_is_the_reason(supervise):
    said = json.dumps({"code": 76, "reason": "rank 1 stood still", "step": 4, "rank": 0, "host": "node7", "time": 1.0})
    note = f"mkdir -p run/state; echo {shlex.quote(said)} > run/state/ended-00000.json; exit 76"
    code, started, attempts = supervise(note, "exit 0")
    assert (code, started) == (0, 2)
    assert attempts[0].reason == "rank 1 stood still (rank 0 on node7)"
    assert attempts[0].counts


def test_the_status_that_a_launcher_hides_is_taken_from_the_ranks(supervise):
    said = json.dumps({"code": 2, "reason": "no data", "step": None, "rank": 1, "host": "node7", "time": 1.0})
    note = f"mkdir -p run/state; echo {shlex.quote(said)} > run/state/ended-00001.json; exit 1"
    code, started, [attempt] = supervise(note, "exit 0")
    assert (code, started, attempt.outcome) == (2, 1, "refused")


def test_a_wall_time_too_short_for_one_checkpoint_does_not_go_on_for_ever(supervise):
    code, started, _ = supervise(*[f"exit {exit_codes.OUT_OF_TIME}"] * 9, max_restarts=3)
    assert (code, started) == (exit_codes.OUT_OF_TIME, 4)


def test_being_preempted_often_is_not_held_against_a_run(supervise):
    assert supervise(*["exit 143"] * 6, "exit 0", max_restarts=1)[:2] == (0, 7)


def test_an_attempt_whose_end_nobody_saw_counts(supervise, tmp_path):
    journal = Journal(tmp_path / "run")
    for _ in range(2):
        journal.begin("17", "node1")
    assert journal.without_progress("17") == 2
    assert journal.without_progress("18") == 0
    assert [attempt.outcome for attempt in journal.attempts()] == ["lost", "lost"]


def test_a_line_that_a_power_cut_left_half_written_is_passed_over(tmp_path):
    journal = Journal(tmp_path)
    first = journal.begin("17", "node1")
    with journal.path.open("a") as file:
        file.write('{"number": 2, "jo')
    journal.end(first, code=0, outcome="done", reason="", counts=False)
    assert [(attempt.number, attempt.outcome) for attempt in journal.attempts()] == [(1, "done")]


def test_outside_of_slurm_a_signal_is_handed_on_and_the_run_is_not_started_again(tmp_path):
    command = "trap 'exit 143' TERM; touch up; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "supervise", "--run", "run", "--", "sh", "-c", command],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "asked to stop by SIGTERM" in errors
    assert "Traceback" not in errors
    [attempt] = Journal(tmp_path / "run").attempts()
    assert attempt.outcome == "stopped"


def test_a_command_that_is_not_there_is_named(tmp_path, capsys):
    from pipeline.cli import main

    assert main(["supervise", "--run", str(tmp_path / "run"), "--", "no-such-command"]) == 2
    assert "no-such-command cannot be started" in capsys.readouterr().err


def test_without_a_command_it_says_what_is_missing(tmp_path, capsys):
    from pipeline.cli import main

    assert main(["supervise", "--run", str(tmp_path / "run")]) == 2
    assert "give the command after --" in capsys.readouterr().err


def test_a_controller_that_is_being_restarted_is_waited_for(monkeypatch):
    from pipeline.slurm import cluster, supervisor

    answers = iter([InputError("no answer"), InputError("no answer"), "RUNNING"])

    def job_state(job: str) -> str:
        answer = next(answers)
        if isinstance(answer, InputError):
            raise answer
        return answer

    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(cluster, "job_state", job_state)
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: None)
    assert supervisor.Job().ending_already() is None
    assert next(answers, None) is None
