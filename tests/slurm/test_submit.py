"""Runs submitted to a real cluster: the chain, arrays, both launchers, by hand, cancelled, and what the cluster is asked before."""

import contextlib
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from slurm.cluster import GPU_TYPE, Cluster
from tiny_runs import GPT, write_config

from data_prep.files import InputError
from pipeline.cli import main
from pipeline.slurm import checks
from pipeline.slurm import cluster as client
from pipeline.slurm.record import Record, queued
from pipeline.slurm.settings import SideJob, Slurm
from pipeline.slurm.submission import Chain, Member

pytestmark = pytest.mark.slurm
PROJECT = Path(__file__).parents[2]


def call(*arguments: object) -> tuple[int, str]:
    """A verb in this process: its exit status and all that it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main([str(argument) for argument in arguments])
    return status, output.getvalue()


def chain_of(folder: Path, python: str, *names: str, evaluate: bool = False, **settings) -> Chain:
    """Jobs that run `python` in place of Python, without asking `fit` what it makes of a configuration."""
    run = folder / "run"
    members = [Member(run / name, []) for name in names] or [Member(run, [])]
    side = SideJob(cpus=1, time="00:05:00")
    given = Slurm(python=python, time="00:05:00", preflight=False, data=side, evaluate=side, **settings)
    chain = Chain(run, members, bool(names), given, None, [] if evaluate else None)
    chain.keep(["{}\n"] * len(members), None)
    return chain


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_data_training_and_evaluation_follow_one_another_and_the_run_says_so(slurm: Cluster, tmp_path: Path):
    text = tmp_path / "texts.jsonl"
    text.write_text(
        "".join(
            json.dumps({"text": f"The {n}th text of {n * 7} has words of {n * 3} letters. " * 4}) + "\n"
            for n in range(400)
        )
    )
    data = tmp_path / "data.yaml"
    source = {"class_path": "Jsonl", "init_args": {"files": [str(text)]}}
    data.write_text(yaml.safe_dump({
        "output": str(tmp_path / "data"), "sources": {"texts": source}, "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 512},
    }))  # fmt: skip
    config = write_config(tmp_path / "config.yaml", tmp_path / "data" / "tokens", GPT, data__validation_tokens=64)
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("tasks: [two_digit_addition]\nshots: 0\nlimit: 2\n")
    status, output = call(
        "submit", "--config", config, "--nodes", 2, "--time", "00:10:00", "--after-data", data, "--then-evaluate", tasks, "--force",
    )  # fmt: skip
    assert status == 0, output
    run = tmp_path / "run"
    jobs = Record(run).read()["jobs"]
    assert [*jobs] == ["data", "train", "evaluate"]
    for role, job in jobs.items():
        assert slurm.wait(job, seconds=120) == "COMPLETED", (run / "logs" / f"{role}-{job}.out").read_text()
    assert len((run / "metrics.csv").read_text().splitlines()) > 10
    assert (run / "evaluation" / "results.json").exists()
    kept = yaml.safe_load((run / "submission" / "config.yaml").read_text())
    assert "precision" not in kept["trainer"]
    assert kept["slurm"]["nodes"] == 2
    # The run went by the copy, and says which code that is.
    commit = (run / "submission" / "commit").read_text().strip()
    assert json.loads((run / "run.json").read_text())["code"]["commit"] == commit
    found = json.loads(call("status", run, "--json")[1])
    assert [job["state"] for job in found["jobs"]] == ["COMPLETED"] * 3
    assert (found["training"]["step"], found["training"]["steps"], found["training"]["checkpoint_step"]) == (10, 10, 10)
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["done"]
    output = call("logs", "--follow", "--job", "train", run)[1]
    assert "a sum over all ranks took" in output
    assert f"job {jobs['train']} is over: completed" in output


def test_each_member_of_an_array_trains_in_a_directory_of_its_own(slurm: Cluster, tmp_path: Path, tokens_folder: Path):
    config = write_config(tmp_path / "config.yaml", tokens_folder, GPT)
    options = ("--time", "00:10:00", "--slurm.preflight", "false", "--array", "seed=1,2", "--force")
    status, output = call("submit", "--config", config, *options)
    assert status == 0, output
    members = [tmp_path / "run" / name for name in ("seed-1", "seed-2")]
    array = Record(tmp_path / "run").read()
    assert array["members"] == [str(member) for member in members]
    assert slurm.wait(array["jobs"]["train"], seconds=120) == "COMPLETED"
    losses = [(member / "metrics.csv").read_text() for member in members]
    assert all(len(text.splitlines()) > 10 for text in losses)
    assert losses[0] != losses[1]
    found = json.loads(call("status", members[1], "--json")[1])
    assert found["jobs"][0]["state"] == "COMPLETED"
    assert found["jobs"][0]["id"].endswith("_1")


def test_torchrun_starts_the_ranks_of_two_nodes_in_a_container(slurm: Cluster, tmp_path: Path, tokens_folder: Path):
    config = write_config(tmp_path / "config.yaml", tokens_folder, GPT, trainer__accelerator="cpu", data__micro_batch=4)
    # In place of Apptainer: `exec --nv IMAGE COMMAND ...` runs the command, without Slurm's commands.
    tools = tmp_path / "tools"
    tools.mkdir()
    script(tools / "apptainer", f'echo "$3 on $SLURMD_NODENAME" >> {tmp_path}/images; shift 3; PATH=/nowhere exec "$@"')
    setup = f"export PATH={tools}:{Path(sys.executable).parent}:$PATH"
    chain = chain_of(
        tmp_path, sys.executable, nodes=2, ranks_per_node=2, launcher="torchrun", container="image.sif", setup=setup
    )
    (tmp_path / "run" / "submission" / "config.yaml").write_text(config.read_text())
    job = chain.queue()["train"]
    assert slurm.wait(job, seconds=120) == "COMPLETED", (tmp_path / "run" / "logs" / f"train-{job}.out").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["environment"]["world_size"] == 4
    assert sorted((tmp_path / "images").read_text().splitlines()) == ["image.sif on node1", "image.sif on node2"]


def test_the_template_runs_by_hand(slurm: Cluster, tmp_path: Path, tokens_folder: Path):
    config = write_config(tmp_path / "config.yaml", tokens_folder, GPT)
    job = slurm.submit(
        "-D", PROJECT, "-o", tmp_path / "output", "--cpus-per-task=1", "--signal=USR1@20", PROJECT / "slurm" / "train.sbatch", config,
        "--data.total_tokens", 1024,
    )  # fmt: skip
    assert slurm.wait(job, seconds=120) == "COMPLETED", (tmp_path / "output").read_text()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 4
    assert (tmp_path / "run" / "state" / "preflight.json").exists()


def test_nothing_waits_for_a_job_that_failed(slurm: Cluster, tmp_path: Path):
    chain = chain_of(tmp_path, script(tmp_path / "python", "exit 3"), evaluate=True)
    jobs = chain.queue()
    assert slurm.wait(jobs["train"]) == "FAILED"
    assert slurm.job(jobs["train"])["ExitCode"] == "3:0"
    assert slurm.wait(jobs["evaluate"]) == "CANCELLED"


def test_cancelling_ends_the_whole_chain_and_nothing_comes_back(slurm: Cluster, tmp_path: Path):
    chain = chain_of(tmp_path, script(tmp_path / "python", "sleep 100"), evaluate=True)
    jobs = chain.queue()
    slurm.wait(jobs["train"], {"RUNNING"})
    # A second submission of the same directory is refused as long as the first is in the queue.
    assert {job.id for job in queued(tmp_path / "run")} == set(jobs.values())
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"default_root_dir": str(tmp_path / "run" / "seed-1")}}))
    assert f"is in the queue already, as job {jobs['train']}" in call("submit", "--config", config)[1]
    status, output = call("cancel", tmp_path / "run")
    assert status == 0
    assert f"job {jobs['train']} (train) is cancelled; it was running" in output
    assert slurm.wait(jobs["train"]) == slurm.wait(jobs["evaluate"]) == "CANCELLED"
    assert call("cancel", tmp_path / "run")[1].count("was over: cancelled") == 2
    assert not queued(tmp_path / "run")


def test_a_requeued_member_of_an_array_comes_back_without_the_nodes_that_are_excluded(slurm: Cluster, tmp_path: Path):
    python = script(
        tmp_path / "python",
        'echo "$SLURM_ARRAY_TASK_ID ${SLURM_RESTART_COUNT:-0} $SLURM_JOB_NODELIST"\n'
        '[ "$SLURM_ARRAY_TASK_ID$SLURM_RESTART_COUNT" = 1 ] || exit 0\n'
        f"{sys.executable} -c \"from pipeline.slurm import cluster; cluster.requeue('$SLURM_JOB_ID', ['$SLURM_JOB_NODELIST'])\"; sleep 60",
    )
    chain = chain_of(tmp_path, python, "a", "b", exclude="node3", cpus_per_task=8)
    job = chain.queue()["train"]
    slurm.wait_until(lambda: "1 1" in logged(tmp_path, f"{job}_1"), 30, "second start")
    assert slurm.wait(job) == "COMPLETED"
    began, again = (line.split()[2] for line in logged(tmp_path, f"{job}_1").splitlines() if line.startswith("1 "))
    assert {began, again} == {"node1", "node2"}
    assert set(client.hosts(slurm.job(f"{job}_1")["ExcNodeList"])) == {"node3", began}
    assert slurm.job(f"{job}_0").get("Restarts") == "0"


def logged(folder: Path, job: str) -> str:
    path = folder / "run" / "logs" / f"train-{job}.out"
    return path.read_text() if path.exists() else ""


def test_a_job_is_not_requeued_when_too_few_nodes_would_be_left(slurm: Cluster, tmp_path: Path):
    chain = chain_of(tmp_path, script(tmp_path / "python", "sleep 100"), nodes=2)
    job = chain.queue()["train"]
    slurm.wait(job, {"RUNNING"})
    with pytest.raises(InputError, match="has 1 working nodes and the job needs 2"):
        client.requeue(job, ["node1", "node2"])
    assert client.job_state(job) == "RUNNING"
    assert 0 < (client.remaining_seconds(job) or 0) <= 300


def test_the_cluster_is_asked_what_it_has(slurm: Cluster):
    partitions, nodes = client.partitions(), client.nodes("main")

    def against(**changes) -> list[str]:
        return checks.check_partition(
            replace(Slurm(nodes=2, gpus_per_node=2, gpu_type=GPU_TYPE), **changes), partitions, nodes
        )

    assert against() == []
    assert "the cluster has main, short, closed, urgent" in against(partition="gpus")[0]
    assert "is down" in against(partition="closed")[0]
    assert "partition short gives 00:10:00 at most" in against(partition="short")[0]
    assert "needs 4 nodes, partition main has 3" in against(nodes=4)[0]
    assert f"partition main has {GPU_TYPE}" in against(gpu_type="a100")[0]
    assert "has 0: its largest node has 2 GPUs, 8 cores" in against(gpus_per_node=4)[0]
    slurm.cut_power("node1", declare_down=True)
    slurm.cut_power("node2", declare_down=True)
    nodes = client.nodes("main")
    assert "only 1 that fit are up" in against()[0]


def test_what_slurm_says_no_to_is_one_sentence(slurm: Cluster, tmp_path: Path):
    job = tmp_path / "job.sbatch"
    job.write_text("#!/bin/bash\n#SBATCH --partition=nowhere\ntrue\n")
    with pytest.raises(InputError, match=r"^The cluster would not take this job: Slurm says: .*[Ii]nvalid partition"):
        client.refuse_what_slurm_would(job)
    assert client.job_state("999999") == ""
    assert os.environ["SLURM_CONF"].startswith(str(slurm.root))
