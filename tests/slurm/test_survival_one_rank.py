"""What happens to a run on one task when things go wrong: the run that comes out is one that nothing happened to."""

import random
import time

import pytest
from slurm.jobs import BATCH, TrainingJob, equal, uninterrupted

from pipeline.slurm.attempts import newest_step

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def whole(cluster, tokens_folder, tmp_path_factory):
    return uninterrupted(cluster, tokens_folder, tmp_path_factory.getbasetemp().parent)


def test_twenty_random_kills_in_a_row_lose_nothing_and_repeat_nothing(slurm, tokens_folder, tmp_path, whole):
    every_step = ["--checkpoint.every_tokens", str(BATCH)]
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=[0.4], options=every_step)
    moments = random.Random(1)
    number = job.submit(environment={"MAX_RESTARTS": "20"})
    for kill in range(20):
        slurm.wait_until(lambda begun=kill + 1: len(job.attempts()) >= begun, 60, f"attempt {kill + 1}")
        if kill % 3:
            # Somewhere in training, or in a save; every third time while it starts.
            slurm.wait_until(lambda: saved(job), 60, f"a step of attempt {kill + 1}")
        time.sleep(moments.uniform(0, 0.5))
        slurm.wait_until(lambda ended=kill + 1: killed(slurm, number, job, ended), 60, f"end of attempt {kill + 1}")
    assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    outcomes = job.outcomes()
    assert outcomes == ["restarted"] * (len(outcomes) - 1) + ["done"]
    assert len(outcomes) == 21
    equal(job, whole)


def saved(job) -> bool:
    """Whether the attempt that is going on has saved a step."""
    return newest_step(job.run) > job.attempts()[-1].from_step


def killed(slurm, number, job, attempts) -> bool:
    """Kill the ranks, which may not be there yet; whether so many attempts have ended by now."""
    ended = sum(attempt.ended is not None for attempt in job.attempts())
    if ended < attempts:
        # The job itself would be cancelled, were its number given.
        steps = slurm.command("squeue", "-h", "--steps", "-j", number, "-o", "%i", check=False).stdout.split()
        for step in [step for step in steps if step.rpartition(".")[2].isdigit()]:
            slurm.command("scancel", "--signal=KILL", step, check=False)
    return ended >= attempts


def test_the_end_of_the_wall_time_is_foreseen_without_any_signal(slurm, tokens_folder, tmp_path, whole):
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=[0.7], options=["--wall_time.reserve_seconds", "36"])
    number = job.submit("--time=1", "--signal=CONT@1")
    assert slurm.wait(number, seconds=180) == "COMPLETED", job.said()
    attempts = job.attempts()
    assert [a.outcome for a in attempts] == ["requeued"] * (len(attempts) - 1) + ["done"]
    assert len(attempts) >= 2
    assert attempts[0].code == 75
    equal(job, whole)


def test_a_crash_loop_ends_with_the_reason_in_one_place(slurm, tokens_folder, tmp_path):
    fault = ("SignalItself", {"number": "KILL", "step": 1, "always": True})
    job = TrainingJob(slurm, tmp_path, tokens_folder, faults=[fault])
    number = job.submit(environment={"MAX_RESTARTS": "1"})
    assert slurm.wait(number, seconds=120) == "FAILED"
    assert len(job.attempts()) == 2
    last = job.attempts()[-1]
    assert last.outcome == "failed"
    assert "2 attempts in a row ended without a newer checkpoint than step 0" in last.reason
    assert "SIGKILL" in last.reason
    assert last.reason in job.said()


def test_a_corrupted_last_checkpoint_is_put_aside_and_the_one_before_used(slurm, tokens_folder, tmp_path, whole):
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=[0.05], options=["--checkpoint.keep_last", "3"])
    number = job.submit()
    job.reaches(17)
    slurm.command("scancel", number)
    assert slurm.wait(number) == "CANCELLED"
    newest = newest_step(job.run)
    weights = job.run / "checkpoints" / f"step-{newest:08d}" / "rank-00000.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    number = job.submit()
    assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    assert list((job.run / "checkpoints").glob(f"broken-step-{newest:08d}*"))
    assert f"broken-step-{newest:08d}" in job.said()
    equal(job, whole)


def test_scancel_saves_and_nothing_brings_the_job_back(slurm, tokens_folder, tmp_path, whole):
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=[0.1])
    number = job.submit()
    job.reaches(12)
    slurm.command("scancel", number)
    assert slurm.wait(number) == "CANCELLED"
    [attempt] = job.attempts()
    assert attempt.outcome == "stopped"
    assert newest_step(job.run) >= 12
    slurm.command("squeue", "-h", "-j", number, check=False)
    time.sleep(1)
    assert slurm.job(number)["JobState"] == "CANCELLED"
    assert slurm.wait(job.submit(), seconds=120) == "COMPLETED", job.said()
    equal(job, whole)


def test_a_signal_before_python_has_a_handler_loses_nothing(slurm, tokens_folder, tmp_path, whole):
    job = TrainingJob(slurm, tmp_path, tokens_folder)
    number = job.submit()
    slurm.wait_until(lambda: bool(job.attempts()), 60, "first attempt")
    time.sleep(0.3)
    slurm.signal(number, "USR1")
    assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    # Deaf for a moment, a rank may miss it; the forecast of the wall time does not depend on it.
    assert job.outcomes() in (["requeued", "done"], ["done"]), job.said()
    equal(job, whole)


def test_a_restart_of_the_controller_goes_unnoticed(slurm, tokens_folder, tmp_path, whole):
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=[0.05])
    number = job.submit()
    job.reaches(5)
    slurm.restart_controller()
    assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    assert job.outcomes() == ["done"]
    equal(job, whole)
