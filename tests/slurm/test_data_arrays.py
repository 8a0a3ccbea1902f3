"""Data preparation as arrays of jobs on a real cluster: the bytes of a local run, whatever happens to the jobs."""

import contextlib
import io
import json
import os
import re
from pathlib import Path
from signal import SIGKILL

import pytest
import yaml
from slurm.cluster import Cluster

from data_prep.cli import main
from data_prep.units import Output

pytestmark = pytest.mark.slurm


def call(*arguments: object) -> tuple[int, str]:
    """A verb in this process: its exit status and all that it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main([str(argument) for argument in arguments])
    return status, output.getvalue()


def lines_of(name: str, count: int) -> str:
    texts = (f"{name}: the {n}th text of {n * 7} has words of {n * 3} letters. " * 4 for n in range(count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def write_config(folder: Path, counts: dict[str, int], **slurm: object) -> Path:
    """A corpus of a file for each source, and its YAML."""
    sources = {}
    for name, count in counts.items():
        file = folder / f"{name}.jsonl"
        file.write_text(lines_of(name, count))
        sources[name] = {"class_path": "Jsonl", "init_args": {"files": [str(file)]}}
    config = folder / "data.yaml"
    config.write_text(yaml.safe_dump({
        "output": str(folder / "out"), "sources": sources, "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300}, "slurm": {"partition": "main", "time": "00:10:00", **slurm},
    }))  # fmt: skip
    return config


def files_of(output: Path) -> dict[str, bytes]:
    """What a run has made, without how it was made."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.relative_to(output).parts[0] not in ("slurm", ".units", ".lock")
    }


def units_of(output: Path) -> dict[str, int]:
    """When each finished unit was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob(".units/**/unit.json")}


def jobs_of(output: Path) -> list[dict]:
    return json.loads((output / "slurm" / "jobs.json").read_text())


def processes_of(folder: Path, job: str) -> list[int]:
    """The Python processes that do the work of a job."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            own = dict(word.partition(b"=")[::2] for word in (process / "environ").read_bytes().split(b"\0"))
            member = b"_".join(own.get(name, b"") for name in (b"SLURM_ARRAY_JOB_ID", b"SLURM_ARRAY_TASK_ID"))
            if words[0].endswith(b"python") and str(folder).encode() in b" ".join(words) and member == job.encode():
                found.append(int(process.name))
    return found


def test_arrays_of_jobs_make_the_bytes_of_a_local_run_each_after_the_one_before(slurm: Cluster, tmp_path: Path):
    config = write_config(tmp_path, {"a": 200, "b": 100, "c": 50}, tasks=3, cpus_per_task=2, memory="2G")
    status, printed = call("run", "--config", config, "--output", tmp_path / "local")
    assert status == 0, printed
    here = files_of(tmp_path / "local")
    status, printed = call("run", "--config", config, "--executor", "slurm")
    assert status == 0, printed
    jobs = jobs_of(tmp_path / "out")
    arrays = [job["name"].partition("-")[2] for job in jobs if job["tasks"] == 3]
    assert [name for name in arrays if name.endswith(("collect", "split"))] == ["collect", "split"]
    for before, job in zip([None, *jobs], jobs, strict=False):
        assert re.search(rf"{job['job']} +{job['name']} .* {job['tasks']}", printed)
        known = slurm.jobs(job["job"])
        assert known[0]["Partition"] == "main"
        assert known[0]["TimeLimit"] == "00:10:00"
        assert job["after"] == (before and before["job"])
        # Slurm forgets a dependency that is satisfied.
        assert before is None or known[0]["Dependency"] == "(null)" or before["job"] in known[0]["Dependency"]
    assert f"afterok:{jobs[-2]['job']}" in slurm.job(jobs[-1]["job"])["Dependency"]
    # While they are there, no second run gets at the same folder, from here or from the cluster.
    for executor in ("slurm", "local"):
        status, refusal = call("run", "--config", config, "--executor", executor)
        assert status == 2
        assert "still in the queue" in refusal
        assert len(refusal.splitlines()) == 1
    status, printed = call("run", "--config", config, "--executor", "slurm", "--wait")
    assert status == 0, printed
    assert re.search(r"collect: \d of 3 units|tokenize, \w+: \d+ of \d+ units|is over: completed", printed)
    assert [slurm.wait(job["job"]) for job in jobs] == ["COMPLETED"] * len(jobs)
    assert len(slurm.jobs(jobs[0]["job"])) == 3
    assert files_of(tmp_path / "out") == here
    # All is there: nothing is submitted, by any number of tasks.
    before = slurm.command("squeue", "-h", "--states=all").stdout
    status, printed = call("run", "--config", config, "--executor", "slurm", "--slurm.tasks", 7)
    assert status == 0
    assert printed.count("unchanged") == 7
    assert slurm.command("squeue", "-h", "--states=all").stdout == before


def test_one_task_does_for_every_array(slurm: Cluster, tmp_path: Path):
    config = write_config(tmp_path, {"a": 100}, tasks=1, time=10)
    status, printed = call("split", "--config", config, "--output", tmp_path / "local")
    assert status == 0, printed
    status, printed = call("split", "--config", config, "--executor", "slurm", "--wait")
    assert status == 0, printed
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")


def test_a_bad_line_is_named_when_the_other_units_are_done_and_mended_it_alone_is_read_again(
    slurm: Cluster, tmp_path: Path
):
    config = write_config(tmp_path, {"a": 50, "b": 50, "c": 50}, tasks=2)
    (tmp_path / "b.jsonl").write_text(lines_of("b", 20) + "{not JSON\n" + lines_of("b", 10))
    status, printed = call("dedup", "--config", config, "--executor", "slurm", "--wait")
    assert status != 0
    assert re.search(r"error: .*b\.jsonl.*line 21", printed)
    jobs = jobs_of(tmp_path / "out")
    assert "FAILED" in slurm.wait(jobs[0]["job"])
    assert {slurm.wait(job["job"]) for job in jobs[1:]} == {"CANCELLED"}
    done = units_of(tmp_path / "out")
    assert len(done) == 2
    (tmp_path / "b.jsonl").write_text(lines_of("b", 20))
    status, printed = call("dedup", "--config", config, "--executor", "slurm", "--wait", "--slurm.tasks", 3)
    assert status == 0, printed
    assert "failed before" in printed
    now = units_of(tmp_path / "out")
    assert {name: now[name] for name in done} == done
    assert call("dedup", "--config", config, "--output", tmp_path / "local")[0] == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")


@pytest.mark.parametrize("signal", ["KILL", "USR2", "TERM"])
def test_a_task_that_is_killed_leaves_nothing_half_written_and_its_units_are_done_later(
    slurm: Cluster, tmp_path: Path, signal: str
):
    config = write_config(tmp_path, {"a": 300_000, "b": 100}, tasks=2)
    assert call("collect", "--config", config, "--executor", "slurm")[0] == 0
    output = tmp_path / "out"
    first, *others = [job["job"] for job in jobs_of(output)]

    def at_work() -> bool:
        logs = [path.read_text() for path in output.glob("slurm/01-collect/*_log.out")]
        return len([log for log in logs if "documents/a" in log]) == 2

    slurm.wait_until(at_work, 60, "both tasks at work")
    if signal == "KILL":
        task, *_ = [task for index in (1, 0) for task in processes_of(output / "slurm", f"{first}_{index}")]
        os.kill(task, SIGKILL)
        assert "FAILED" in slurm.wait(first)
        assert all(Output.read(folder) for folder in output.glob(".units/documents/*/documents/[!.]*"))
        assert not (output / "documents" / "a").exists()
        assert [slurm.wait(other) for other in others] == ["CANCELLED"] * len(others)
    else:  # As before the end of its time, or where others have a right to its place: it is queued again by itself.
        slurm.signal(first, signal)
    status, printed = call("collect", "--config", config, "--executor", "slurm", "--wait")
    assert status == 0, printed
    if signal != "KILL":
        assert any(job["Restarts"] == "1" for job in slurm.jobs(first))
        assert first == jobs_of(output)[0]["job"]
    assert call("collect", "--config", config, "--output", tmp_path / "local")[0] == 0
    assert files_of(output) == files_of(tmp_path / "local")


def test_what_slurm_says_no_to_is_one_sentence_and_leaves_no_job(slurm: Cluster, tmp_path: Path):
    config = write_config(tmp_path, {"a": 10}, partition="nowhere")
    status, printed = call("run", "--config", config, "--executor", "slurm")
    assert status == 2
    assert re.fullmatch(r"error: The cluster did not take .*[Ii]nvalid partition.*nowhere.*\n", printed)
    assert slurm.command("squeue", "-h").stdout == ""
    # Mended, or without a cluster, the same command goes on.
    status, printed = call("run", "--config", config, "--executor", "local")
    assert status == 0, printed
