"""What is found out about a cluster and a run, from what Slurm and files say."""

import json
import os
import signal
from pathlib import Path

import pytest

from data_prep.files import InputError
from pipeline.slurm import checks, cluster, status
from pipeline.slurm.record import Record

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
10.0.0.1@tcp:/scratch /scratch/big\\040disk lustre rw 0 0
"""


def test_a_running_job_is_read_from_scontrol():
    job = cluster.job_of(
        "JobId=2006 ArrayJobId=2005 ArrayTaskId=0 JobName=my run UserId=a(1) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 "
        "Restarts=2 ExitCode=3:0 TimeLimit=00:10:00 StartTime=2026-11-22T09:47:42 EndTime=2026-11-22T09:57:42 Partition=gpu "
        "ExcNodeList=node3 NodeList=node[1-2] NumNodes=2-2 Comment=run:/x/y  StdErr=/x/o StdOut=/x/o Power= "
    )
    assert (job.id, job.number, job.name, job.state, job.reason) == ("2005_0", "2006", "my run", "RUNNING", "")
    assert (job.restarts, job.exit_code, job.nodes, job.excluded) == (2, 3, "node[1-2]", "node3")
    assert (job.comment, job.output, job.partition, job.node_count) == ("run:/x/y", "/x/o", "gpu", 2)
    assert job.started
    assert job.ends == job.started + 600


def test_a_waiting_job_has_neither_start_nor_end():
    job = cluster.job_of("JobId=7 JobName=x JobState=PENDING Reason=Priority StartTime=Unknown EndTime=Unknown")
    assert (job.id, job.started, job.ends, job.reason, job.over) == ("7", None, None, "Priority", False)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in that is ended before it answers, as by a cluster that is quick to end the job that asks."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = show ]; then echo "JobId=7 JobName=x JobState=RUNNING"; exit; fi\n'
        "kill -TERM $$\n"
        f'echo "$@" >> {tmp_path}/asked\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_a_job_that_ends_as_it_is_requeued_is_requeued_all_the_same(scontrol):
    before = signal.getsignal(signal.SIGTERM)
    cluster.requeue("7")
    assert scontrol.read_text() == "requeue 7\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_that_was_ended_before_its_answer_is_told_from_a_refusal(scontrol):
    with pytest.raises(InputError, match="^no hold: scontrol was ended by SIGTERM before its answer$"):
        cluster.ask("scontrol", "hold", "7", refusal="no hold")
    assert not scontrol.exists()


@pytest.mark.parametrize(
    ("line", "gpus", "state"),
    [
        ("n1|idle|64|512000|gpu:h100:8(S:0-1)|ib,fast", {"h100": 8}, "idle"),
        ("n1|mixed+|64|512000|gpu:a100:4,gpu:t4:2,nic:1|(null)", {"a100": 4, "t4": 2}, "mixed"),
        ("n1|down*|64|512000|gpu:8|(null)", {"": 8}, "down"),
        ("n1|drained$|64+|512000+|(null)|(null)", {}, "drained"),
    ],
)
def test_a_node_is_read_from_sinfo(line, gpus, state):
    node = cluster.node_of(line)
    assert (node.gpus, node.state, node.cores, node.memory_mb) == (gpus, state, 64, 512000)


@pytest.mark.parametrize(
    ("path", "nodes", "refused", "warned"),
    [
        ("/home/me/run", 4, False, False),
        ("/scratch/big disk/run", 4, False, False),
        ("/tmp/run", 4, True, False),
        ("/tmp/run", 1, False, True),
        ("/dev/shm/run", 2, True, False),
        ("/srv/run", 4, False, True),
        ("/srv/run", 1, False, False),
        ("/homes/run", 2, False, True),
    ],
)
def test_a_run_directory_that_other_nodes_do_not_see_is_noticed(path, nodes, refused, warned):
    findings = checks.check_folder(Path(path), nodes, MOUNTS)
    assert (bool(findings.refusals), bool(findings.warnings)) == (refused, warned)
    assert all("set trainer.default_root_dir" in sentence for sentence in findings.refusals + findings.warnings)


def test_data_that_is_neither_there_nor_made_is_refused(tmp_path):
    config = {"data": {"path": str(tmp_path / "corpus" / "tokens"), "mixture": None}}
    assert "There are no token shards at" in checks.check_data([config], None)[0]
    assert checks.check_data([config], {"output": str(tmp_path / "corpus")}) == []
    assert "the run reads" in checks.check_data([config], {"output": str(tmp_path / "other")})[0]
    (tmp_path / "corpus" / "tokens").mkdir(parents=True)
    (tmp_path / "corpus" / "tokens" / "manifest.json").write_text("{}")
    assert checks.check_data([config], None) == []


def test_a_disk_that_is_too_small_is_refused(tmp_path):
    assert checks.check_disk(tmp_path / "not" / "yet", 1000) == []
    assert "GB free" in checks.check_disk(tmp_path / "not" / "yet", 10**18)[0]


@pytest.mark.parametrize(
    ("waiting", "member", "covered"),
    [("12_1-3", "12_2", True), ("12_1,4", "12_4", True), ("12_0-9%2", "12_7", True), ("12_1-3", "12_4", False), ("13_2", "12_2", False)],
)  # fmt: skip
def test_members_of_an_array_that_wait_are_found_in_what_stands_for_them(waiting, member, covered):
    assert status.covers(waiting, member) is covered


def test_a_run_is_described_from_its_directory_where_there_is_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "available", lambda: False)
    run = tmp_path / "run"
    Record(run).write({"submitted": 1.0, "jobs": {"train": "12"}, "nodes": 2, "ranks": 4, "seconds": 60, "outputs": {}})
    (run / "run.json").write_text(json.dumps({"total_tokens": 4000}))
    (run / "metrics.csv").write_text(
        "step,tokens,train/loss,val/loss,train/tokens_per_second\n10,1000,7.5,,100\n10,1000,,7.0,\n20,2000,6.5,,200\n21,21"
    )
    (run / "checkpoints" / "step-00000010").mkdir(parents=True)
    found = status.gather(run)
    assert found["jobs"] == [{"role": "train", "id": "12", "state": "UNKNOWN"}]
    training = found["training"]
    assert (training["step"], training["loss"], training["validation_loss"]) == (20, 6.5, 7.0)
    assert (training["seconds_left"], training["checkpoint_step"]) == (10, 10)
