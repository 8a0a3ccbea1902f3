"""Jobs on a cluster, without one: what they ask for, who does which units, and that the shares of all make a whole run."""

import io
import json
import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from data_prep import recipe, units
from data_prep.cli import main
from data_prep.decontaminate import DecontaminateConfig
from data_prep.dedup import DedupConfig
from data_prep.files import InputError
from data_prep.filtering.stage import FilterConfig
from data_prep.recipe import mapped_phases
from data_prep.run import run
from data_prep.slurm import queue, submission
from data_prep.slurm.frontier import Front, Share, advance, do_share, survey
from data_prep.slurm.record import Record, Submitted
from data_prep.slurm.settings import SlurmConfig
from data_prep.slurm.submission import plan
from data_prep.slurm.tasks import THREADS, Task
from data_prep.sources import Text

QUIET = Console(file=io.StringIO())


@pytest.fixture
def several(config_for, corpus, tmp_path):
    """A corpus of three sources that goes through every stage."""
    tests = tmp_path / "tests"
    tests.mkdir()
    words = " ".join((corpus / "003.txt").read_text().split())
    (tests / "one.jsonl").write_text(json.dumps({"text": words}) + "\n")
    sources = {name: Text(files=[f"{corpus}/{start}*.txt"]) for name, start in zip("abc", "001", strict=True)}
    sources["b"] = replace(sources["b"], files=[f"{corpus}/*5.txt"])
    return config_for(
        corpus,
        sources=sources,
        filter=FilterConfig(c4=None),
        dedup=DedupConfig(fuzzy=True),
        decontaminate=DecontaminateConfig(files=[str(tests)]),
    )


def files_of(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.relative_to(output).parts[0] not in (units.FOLDER, ".lock", "slurm")
    }


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("00:10:00", 10), ("4:00:00", 240), ("1-00:00:00", 1440), ("2-12", 3600), ("1-01:30", 1530), (30, 30), ("30", 30),
        ("10:30", 11), ("00:00:30", 1),
        (4 * 3600, 240),  # What YAML makes of 4:00:00 without quotes.
    ],
)  # fmt: skip
def test_a_wall_time_is_read_as_slurm_reads_it(time, minutes):
    assert SlurmConfig(time=time).minutes == minutes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"time": "a day"}, "slurm.time: 'a day' is not a time limit: write hours"),
        ({"time": "0:00"}, "slurm.time is 0:00: a job needs some time"),
        ({"tasks": 0}, "slurm.tasks is 0: it must be 1 or more"),
        ({"extra": {"--nice": 1}}, "slurm.extra names '--nice': write options of sbatch without dashes"),
        ({"extra": {"array": "0-3"}}, "slurm.extra sets 'array', which follows from the stages"),
    ],
)
def test_settings_that_no_job_can_have_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        SlurmConfig(**settings)


@pytest.mark.parametrize("tasks", [1, 3, 50])
def test_every_unit_is_in_the_share_of_one_task(tasks):
    shares = [Share(index, tasks) for index in range(tasks)]
    for stage in range(4):
        for unit in range(20):
            assert [share.has(stage, unit) for share in shares].count(True) == 1
    # Stages of one unit each are not all done by the first task.
    assert {next(s.index for s in shares if s.has(stage, 0)) for stage in range(tasks)} == set(range(tasks))


def test_shares_and_what_is_not_divided_make_in_turn_the_bytes_of_a_local_run(several, tmp_path):
    local = replace(several, output=str(tmp_path / "local"))
    run(local, "tokenize", QUIET)
    rounds = 0
    while survey(several, "tokenize"):
        rounds += 1
        assert rounds < 20
        for index in range(2):
            assert do_share(several, "tokenize", Share(index, 2), 1, QUIET, nothing) == []
        assert advance(several, "tokenize", 1, QUIET) == []
    run(several, "tokenize", QUIET)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")


@pytest.mark.parametrize("fuzzy", [False, True])
def test_as_many_arrays_are_planned_as_the_stages_have_phases_of_many_units(several, monkeypatch, fuzzy):
    config = replace(several, dedup=DedupConfig(fuzzy=fuzzy))
    seen: dict[str, list[list[str]]] = {}

    def recorded(verb, steps):
        groups = [[]]
        course = steps()
        try:
            phase = next(course)
            while True:
                groups.append([]) if phase.alone else groups[-1].append(phase.name)
                phase = course.send((yield phase))
        except StopIteration as end:
            seen[verb] = [group for group in groups if group]
            return end.value

    for verb, rounds in recipe.STAGES.items():

        def noted(*arguments, verb=verb, rounds=rounds):
            for each in rounds(*arguments):
                yield [replace(stage, steps=partial(recorded, verb, stage.steps)) for stage in each]

        monkeypatch.setitem(recipe.STAGES, verb, noted)
    run(config, "mix", QUIET)
    planned = mapped_phases(config)
    assert {verb: groups for verb, groups in seen.items() if groups} == {
        verb: groups for verb, groups in planned.items() if groups
    }


def test_jobs_are_planned_from_the_first_phase_that_is_not_whole(several):
    def names(verb: str, phase: str, last: str, mapped: bool = True) -> list[str]:
        return [job.name for job in plan(several, last, [Front(verb, "any", phase, 3, mapped=mapped)])]

    assert names("collect", "documents", "collect") == ["collect", "finish"]
    assert names("split", "", "tokenize", mapped=False) == ["split-join", "tokenize", "finish"]
    assert names("decontaminate", "cut", "split") == ["decontaminate-cut", "decontaminate-join", "split", "finish"]
    assert names("tokenizer", "", "tokenizer", mapped=False) == ["finish"]
    jobs = plan(several, "mix", [Front("collect", "any", "documents", 3, mapped=True)])
    assert [job.final for job in jobs] == [False] * (len(jobs) - 1) + [True]


def test_a_unit_that_fails_holds_up_no_other_source(several, corpus, tmp_path):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\xfa" * 10)
    config = replace(several, sources={"bad": Text(files=[str(broken)]), **several.sources}, filter=FilterConfig())
    [failure] = do_share(config, "dedup", Share(0, 1), 1, QUIET, nothing)
    assert "broken.txt" in failure
    assert [front.stage for front in survey(config, "dedup") if front.units] == ["documents/bad"]
    with pytest.raises(InputError, match="broken.txt"):
        run(config, "dedup", QUIET)
    assert all((tmp_path / "out" / "documents" / name / "stage.json").is_file() for name in several.sources)
    assert not (tmp_path / "out" / "unique").exists()


def test_a_job_says_what_failed_in_its_log_and_beside_the_corpus(several, corpus, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\xfa" * 10)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    for name in THREADS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    config = replace(several, sources={"bad": Text(files=[str(broken)])}, filter=FilterConfig())
    with pytest.raises(SystemExit) as end:
        Task(config, "split", Share(0, 1))()
    assert end.value.code == 2
    assert "broken.txt" in capsys.readouterr().err
    [sentence] = Record(tmp_path / "out").failures()
    assert "broken.txt" in sentence
    broken.write_text("mended " * 10)
    Task(config, "collect", Share(0, 1))()
    assert Record(tmp_path / "out").failures() == []


def test_a_job_that_runs_out_of_time_again_and_again_without_a_unit_is_given_up(several):
    task = Task(several, "split", Share(0, 1))
    for _ in range(5):
        task.finished = 1
        again = task.checkpoint()
        assert again is not None
        task = again.function
    assert task.checkpoint().function.checkpoint().function.checkpoint() is None  # pyright: ignore


def test_without_a_cluster_the_executor_slurm_is_one_sentence(several, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^sbatch is not on this machine: .*--executor local"):
        submission.submit(several, "split", False, QUIET)


def test_a_script_asks_for_what_the_settings_say(several, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(
        '#!/bin/bash\ncat "$1" >> "$0.seen"\nenv >> "$0.env"\necho "Submitted batch job $(grep -c bash "$0.seen")"\n'
    )
    (tools / "srun").write_text("")
    (tools / "squeue").write_text("#!/bin/bash\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    slurm = SlurmConfig(
        partition="cpu", time="2:00:00", tasks=3, cpus_per_task=4, memory="16G", account="us", qos="low",
        constraint="amd", setup=["module load gcc"], extra={"nice": 5, "exclusive": True},
    )  # fmt: skip
    submission.submit(replace(several, slurm=slurm, filter=FilterConfig()), "dedup", False, QUIET)
    seen = (tools / "sbatch.seen").read_text()
    first, second = seen.split("#!/bin/bash")[1:3]
    for line in (
        "--partition=cpu", "--time=120", "--array=0-2%3", "--cpus-per-task=4", "--mem=16G", "--account=us", "--qos=low",
        "--constraint=amd", "--nice=5", "--exclusive", "--requeue", "--kill-on-invalid-dep=yes", "--job-name=collect",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in first
    assert "\nmodule load gcc\n" in first
    assert "srun" in first
    assert "--cpus-per-task=4" in first.partition("srun")[2]
    assert "--dependency" not in first
    assert "#SBATCH --dependency=afterok:1\n" in second
    assert "--array" not in second
    # What the job says of itself, in which this was called, is no wish of the jobs.
    assert "SLURM_MEM_PER_CPU" not in (tools / "sbatch.env").read_text()
    assert os.environ["SLURM_MEM_PER_CPU"] == "100"


def test_a_number_that_slurm_has_given_to_somebody_else_is_no_job_of_ours(tmp_path, monkeypatch):
    record = Record(tmp_path)
    record.write([Submitted("01-collect", "", "12", 2, None), Submitted("02-finish", "", "13", 1, "12")])
    answer = f"14|12|RUNNING|{record.mark}\n15|12|COMPLETED|{record.mark}\n13|13|PENDING|another's\n"
    monkeypatch.setattr(queue, "ask", lambda *_: answer)
    found = queue.states(["12", "13"], record.mark)
    assert found == {"12": ["RUNNING", "COMPLETED"]}
    assert queue.waiting(found) == ["12"]
    monkeypatch.setattr(queue, "ask", lambda *_: answer.replace("RUNNING", "FAILED"))
    assert queue.waiting(queue.states(["12", "13"], record.mark)) == []


def test_help_has_executor_and_what_jobs_ask_for(capsys):
    with suppress(SystemExit):
        main(["run", "--help"])
    printed = capsys.readouterr().out
    for option in ("--executor", "--wait", "--slurm.partition", "--slurm.time", "--slurm.tasks", "--slurm.setup"):
        assert option in printed
