"""Nodes with a fault of their own: found before training, called by name, and left out when the job comes back."""

import json
import sys
from pathlib import Path

import pytest
from slurm.cluster import Cluster

pytestmark = pytest.mark.slurm
PROJECT = Path(__file__).parents[2]

JOB = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --requeue --open-mode=append --output={folder}/output
cd {project}
python={python}
$python -m pipeline supervise --run {run} --preflight "$python -m pipeline preflight --run {run} --arrival-seconds 15 -- srun $python" \\
  -- echo trained on "$SLURM_JOB_NODELIST"
exit
"""


def trains_on_what_is_left(slurm: Cluster, folder: Path, run: Path) -> list[dict]:
    """Run a job for which node2 is no good; return what was written of its attempts."""
    script = folder / "job.sbatch"
    script.write_text(JOB.format(folder=folder, project=PROJECT, python=sys.executable, run=run))
    job = slurm.submit(script)
    assert slurm.wait(job, seconds=100) == "COMPLETED", (folder / "output").read_text()
    assert "trained on node[1,3]" in (folder / "output").read_text()
    assert slurm.job(job)["ExcNodeList"] == "node2"
    assert json.loads((run / "state" / "preflight.json").read_text())["nodes"].keys() == {"node1", "node3"}
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


def test_a_node_that_cannot_write_to_the_run_directory_is_left_out(slurm: Cluster, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    slurm.spoil("node2", f"mount --bind {run} {run} && mount -o remount,bind,ro {run}")
    reason = trains_on_what_is_left(slurm, tmp_path, run)[1]["reason"]
    assert f"node2: {run} cannot be written to (Read-only file system)" in reason


def test_a_node_that_sees_another_folder_is_left_out(slurm: Cluster, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    slurm.spoil("node2", f"mount -t tmpfs none {run}")
    reason = trains_on_what_is_left(slurm, tmp_path, run)[1]["reason"]
    assert f"node2: {run} is not the folder that the first node sees" in reason


def test_a_node_on_which_python_hangs_is_left_out(slurm: Cluster, tmp_path: Path):
    python = Path(sys.executable).resolve()
    hang = tmp_path / "hang"
    hang.write_text("#!/bin/sh\nsleep 1000\n")
    hang.chmod(0o755)
    slurm.spoil("node2", f"mount --bind {hang} {python}")
    reason = trains_on_what_is_left(slurm, tmp_path, tmp_path / "run")[1]["reason"]
    assert "node2: rank 2 never arrived within 15 s, rank 3 never arrived within 15 s" in reason
