"""What happens to a run on two nodes when things go wrong: the run that comes out is one that nothing happened to, bit for bit."""

import pytest
from slurm.jobs import TrainingJob, equal, uninterrupted

pytestmark = pytest.mark.slurm

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def whole(cluster, tokens_folder, tmp_path_factory):
    return uninterrupted(cluster, tokens_folder, tmp_path_factory.getbasetemp().parent, *TWO_NODES)


@pytest.mark.parametrize("seconds", [(0.05,), (0.0, 0.1)], ids=["ranks in step", "one rank late"])
def test_usr1_requeues_and_the_run_goes_on_as_if_nothing_had_happened(slurm, tokens_folder, tmp_path, whole, seconds):
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=seconds)
    number = job.submit(*TWO_NODES)
    job.reaches(7)
    slurm.signal(number, "USR1")
    assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    first, second = job.attempts()
    assert (first.outcome, first.code, second.outcome) == ("requeued", 138, "done")
    assert first.to_step == second.from_step >= 7
    equal(job, whole)


def test_one_rank_killed_starts_all_again_in_the_same_allocation(slurm, tokens_folder, tmp_path, whole):
    fault = ("SignalItself", {"number": "KILL", "step": 18, "rank": 1})
    job = TrainingJob(slurm, tmp_path, tokens_folder, faults=[fault])
    number = job.submit(*TWO_NODES)
    assert slurm.wait(number, seconds=120) == "COMPLETED", job.said()
    assert job.outcomes() == ["restarted", "done"]
    assert slurm.job(number)["Restarts"] == "0"
    equal(job, whole)


def test_signals_to_one_rank_in_a_validation_and_to_another_in_a_save(slurm, tokens_folder, tmp_path, whole):
    faults = [
        ("SignalItself", {"number": "USR1", "step": 10, "when": "validation", "rank": 1}),
        # A second one, while what the first has asked for is being saved.
        ("SignalItself", {"number": "TERM", "step": 10, "when": "saving", "rank": 0}),
        ("SignalItself", {"number": "TERM", "step": 21, "when": "saving", "rank": 0}),
    ]
    job = TrainingJob(slurm, tmp_path, tokens_folder, faults=faults)
    number = job.submit(*TWO_NODES)
    assert slurm.wait(number, seconds=150) == "COMPLETED", job.said()
    assert job.outcomes() == ["requeued", "requeued", "done"]
    equal(job, whole)


def test_a_node_without_power_is_replaced_by_a_spare(slurm, tokens_folder, tmp_path, whole):
    job = TrainingJob(slurm, tmp_path, tokens_folder, seconds=[0.1])
    number = job.submit(*TWO_NODES)
    job.reaches(8)
    [lost] = {"node1", "node2"} - {slurm.job(number)["BatchHost"]}
    slurm.cut_power(lost, declare_down=True)
    assert slurm.wait(number, seconds=150) == "COMPLETED", job.said()
    assert job.outcomes()[-1] == "done"
    assert "3" in job.attempts()[-1].nodes
    equal(job, whole)
