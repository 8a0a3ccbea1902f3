"""The cluster that the other tests stand on is one: two nodes, GPUs, failures, requeues, power cuts."""

import pytest

pytestmark = pytest.mark.slurm


def test_tasks_run_on_named_nodes_with_the_gpus_asked_for(slurm, tmp_path):
    job = slurm.submit(
        "-N2", "--ntasks-per-node=1", "--gpus-per-node=h100:2", "-o", tmp_path / "output", "--wrap",
        "srun bash -c 'echo $SLURM_PROCID $(hostname) $CUDA_VISIBLE_DEVICES'",
    )  # fmt: skip
    assert slurm.wait(job) == "COMPLETED"
    assert sorted((tmp_path / "output").read_text().splitlines()) == ["0 node1 0,1", "1 node2 0,1"]


def test_a_requeued_job_starts_again_after_a_power_cut_on_the_nodes_that_are_left(slurm, tmp_path):
    job = slurm.submit(
        "-N2", "--requeue", "--open-mode=append", "-o", tmp_path / "output", "--wrap",
        'echo $SLURM_JOB_NODELIST; [ -n "$SLURM_RESTART_COUNT" ] || srun sleep 100',
    )  # fmt: skip
    slurm.wait_until(
        lambda: (tmp_path / "output").exists() and "node" in (tmp_path / "output").read_text(), 20, "start"
    )
    slurm.cut_power("node2", declare_down=True)
    assert slurm.wait(job) == "COMPLETED"
    assert (tmp_path / "output").read_text().split()[0] == "node[1-2]"
    assert "node[1,3]" in (tmp_path / "output").read_text()


def test_a_restarted_controller_still_knows_its_jobs(slurm, tmp_path):
    job = slurm.submit("-o", tmp_path / "output", "--wrap", "sleep 3; echo done")
    slurm.wait(job, {"RUNNING"})
    slurm.restart_controller()
    assert slurm.wait(job) == "COMPLETED"
    assert (tmp_path / "output").read_text() == "done\n"
