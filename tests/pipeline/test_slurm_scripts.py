"""Job scripts, arrays and settings of a submission, on any machine: what bash makes of a script is what it is judged by."""

import subprocess
from pathlib import Path

import pytest
import yaml
from tiny_runs import GPT, write_config

from data_prep.files import InputError
from data_prep.slurm_time import clock, seconds_of
from pipeline.cli import main
from pipeline.commands.submit import evaluate_options, resolved
from pipeline.slurm import script
from pipeline.slurm.cluster import Node, Partition
from pipeline.slurm.settings import SideJob, Slurm, limit_of
from pipeline.slurm.submission import Chain, Member, members, run_directory

ROLES = ("train", "data", "evaluate")


def chain(run: Path, **settings) -> Chain:
    evaluate = ["--tasks", "a,b", "--include", "a folder/with 'quotes'"]
    return Chain(run, [Member(run, [])], False, Slurm(**settings), run / "data.yaml", evaluate)


def variables(text: str, *names: str) -> list[str]:
    """What bash has in its variables after the settings of a script, a line a word."""
    settings = text.split(script.BEGIN)[1].split(script.END)[0]
    shown = "\n".join(f'printf "%s\\n" "${{{name}[@]}}"' for name in names)
    done = subprocess.run(["bash", "-uc", f"{settings}\n{shown}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("role", ROLES)
def test_a_template_is_a_script_that_sbatch_and_bash_take(role):
    text = script.template(role)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    head = text[: text.index(script.BEGIN)]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert "sbatch slurm/" in head


@pytest.mark.parametrize("role", ROLES)
def test_a_rendered_script_differs_from_its_template_in_directives_and_settings_alone(role, tmp_path):
    def body(text: str) -> str:
        return text.split(script.END)[1]

    text = chain(tmp_path / "run", setup="module load cuda", environment={"A": "b c"}).scripts()[role]
    assert body(text) == body(script.template(role))
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert "  module load cuda\n  export A='b c'\n}" in text


def test_settings_reach_the_shell_as_they_were_given(tmp_path):
    run = tmp_path / "a run; with $signs"
    scripts = chain(
        run, container="image.sif", container_options=["--nv", "--bind", "/data dir"], launcher="torchrun"
    ).scripts()
    assert variables(scripts["train"], "runs", "launcher") == [str(run), "torchrun"]
    assert variables(scripts["train"], "python") == [
        "apptainer", "exec", "--nv", "--bind", "/data dir", "image.sif", "python"
    ]  # fmt: skip
    assert variables(scripts["evaluate"], "options") == ["--tasks", "a,b", "--include", "a folder/with 'quotes'"]
    assert variables(scripts["data"], "config") == [str(run / "submission" / "data.yaml")]


def test_what_a_job_asks_for_stands_in_its_directives(tmp_path):
    scripts = chain(
        tmp_path / "run", nodes=4, gpus_per_node=8, gpu_type="h100", time="1-12:00:00", partition="gpu", account="lab", qos="high",
        constraint="ib", exclude="node3", reservation="r", mem="0", cpus_per_task=12, mail_user="a@b.c", extra=["--exclusive"],
        data=SideJob(partition="cpu", cpus=64, time="02:00:00", mem="100G"),
    ).scripts()  # fmt: skip
    train = {line.removeprefix("#SBATCH ") for line in scripts["train"].splitlines() if line.startswith("#SBATCH")}
    assert train == {
        "--requeue", "--job-name=run", "--nodes=4", "--ntasks-per-node=8", "--cpus-per-task=12", "--gpus-per-node=h100:8", "--mem=0",
        "--time=1-12:00:00", "--signal=USR1@120", "--partition=gpu", "--account=lab", "--qos=high", "--constraint=ib", "--exclude=node3",
        "--reservation=r", "--mail-user=a@b.c", "--mail-type=END,FAIL,REQUEUE", f"--output={tmp_path}/run/logs/train-%j.out",
        "--open-mode=append", f"--comment=run:{tmp_path}/run", "--exclusive",
    }  # fmt: skip
    data = scripts["data"]
    assert {"#SBATCH --partition=cpu", "#SBATCH --cpus-per-task=64", "#SBATCH --mem=100G"} <= set(data.splitlines())
    assert "gpus" not in data


# -- arrays and directories


def config(path: Path, **trainer) -> str:
    path.write_text(yaml.safe_dump({"trainer": trainer}))
    return str(path)


def test_later_files_and_options_decide_on_the_run_directory(tmp_path):
    first, second = config(tmp_path / "a.yaml", default_root_dir="runs/a"), config(tmp_path / "b.yaml", max_steps=3)
    here = Path.cwd()
    assert run_directory(["--config", first, "--config", second]) == here / "runs/a"
    assert run_directory([f"--config={second}", "--config", first, "--trainer.default_root_dir=/x/b"]) == Path("/x/b")
    assert run_directory(["--config", second]) == here / "runs/unnamed"


@pytest.mark.parametrize(
    ("axis", "folders", "options"),
    [
        ("seed=1,2", ["seed-1", "seed-2"], ["--seed_everything", "1", "--data.seed", "1"]),
        (
            "model.optimizer.learning_rate=1e-3,3e-4", ["learning_rate-1e-3", "learning_rate-3e-4"],
            ["--model.optimizer.learning_rate", "1e-3"],
        ),
        ("config=m/small.yaml,m/large.yaml", ["small", "large"], ["--config", "m/small.yaml"]),
    ],
)  # fmt: skip
def test_each_value_of_an_array_is_a_run_of_its_own(axis, folders, options, tmp_path):
    given = ["--config", config(tmp_path / "a.yaml", default_root_dir=str(tmp_path / "run"))]
    found = members(given, axis)
    assert [member.run for member in found] == [tmp_path / "run" / name for name in folders]
    assert found[0].options == [*given, *options, "--trainer.default_root_dir", str(found[0].run)]


@pytest.mark.parametrize("axis", ["seed", "seed=", "seed=1,1", "config=a/x.yaml,b/x.yaml"])
def test_an_array_that_means_nothing_or_the_same_twice_is_refused(axis, tmp_path):
    with pytest.raises(InputError, match="--array is"):
        members(["--config", config(tmp_path / "a.yaml")], axis)


def test_the_precision_that_this_machine_would_choose_is_left_to_the_nodes(tmp_path, monkeypatch):
    whole = {"trainer": {"precision": "32-true"}, "slurm": {"nodes": 2, "ranks_per_node": 3}}
    monkeypatch.setattr("pipeline.slurm.submission.resolve", lambda options: yaml.safe_dump(whole))
    path = config(tmp_path / "a.yaml", max_steps=3)
    for more, left in (((), None), (("--trainer.precision=32-true",), "32-true")):
        texts, contents, settings = resolved([Member(tmp_path, ["--config", path, *more])])
        assert contents[0]["trainer"].get("precision") == left
        assert yaml.safe_load(texts[0]) == contents[0]
        assert (contents[0]["trainer"]["num_nodes"], contents[0]["trainer"]["devices"], settings.nodes) == (2, 3, 2)


def test_an_option_that_is_nearly_one_of_submits_is_named(capsys):
    assert main(["submit", "--config", "x.yaml", "--gpu-per-node", "2"]) == 2
    assert "near it: --gpus-per-node" in capsys.readouterr().err


def test_without_slurm_submit_says_what_works_all_the_same(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", "--config", config(tmp_path / "a.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--dry-run" in error


@pytest.mark.slow
def test_a_dry_run_shows_plan_and_scripts_without_slurm_and_leaves_nothing_behind(
    tokens_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", "/usr/bin" if not Path("/usr/bin/sbatch").exists() else "/nowhere")
    path = write_config(tmp_path / "config.yaml", tokens_folder, GPT)
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("tasks: [two_digit_addition]\n")
    assert main(["submit", "--config", str(path), "--nodes", "2", "--then-evaluate", str(tasks), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "FLOPs a token" in output
    assert output.count("#!/bin/bash") == 2
    assert f"#SBATCH --comment=run:{tmp_path}/run" in output
    assert output.endswith("Nothing was submitted (--dry-run).\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_that_cannot_fit_is_refused_with_what_would(tokens_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.slurm.cluster.available", lambda: True)
    monkeypatch.setattr("pipeline.slurm.cluster.jobs", lambda: [])
    monkeypatch.setattr("pipeline.slurm.cluster.partitions", lambda: [Partition("main", True, True, None, None)])
    monkeypatch.setattr(
        "pipeline.slurm.cluster.nodes", lambda name: [Node("n1", "idle", 64, 500_000, {"v100": 8}, frozenset())]
    )
    model = Path(__file__).parents[2] / "configs" / "model" / "gpt3_13b.yaml"
    path = write_config(
        tmp_path / "config.yaml",
        tokens_folder,
        GPT,
        data__context=2048,
        data__batch_tokens=16384,
        data__micro_batch=1,
        data__total_tokens=163840,
    )
    content = yaml.safe_load(path.read_text())
    del content["model"]
    path.write_text(yaml.safe_dump(content))
    options = ["--gpus-per-node", "1", "--slurm.gpu_type", "v100"]
    assert main(["submit", "--config", str(model), "--config", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert "V100" in error
    assert error.endswith("(--force submits all the same)\n")
    assert not (tmp_path / "run").exists()


# -- settings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("90:30", 5430), ("04:00:00", 14400), ("2-0", 172800), ("1-12:30", 131400), ("1-12:30:15", 131415)
    ],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(clock(seconds)) == seconds


@pytest.mark.parametrize("text", ["four hours", "4h", "", "1:2:3:4", "-5"])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(InputError, match="is not a time limit"):
        seconds_of(text)


def test_a_clock_time_that_yaml_reads_as_a_number_is_understood_and_a_small_number_is_refused():
    assert limit_of(yaml.safe_load("12:00:00"), "slurm.time") == 12 * 3600
    with pytest.raises(InputError, match="such as '04:00:00'"):
        limit_of(yaml.safe_load("240"), "slurm.time")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"nodes": 0}, "slurm.nodes is 0"),
        ({"gpus_per_node": 8, "ranks_per_node": 4}, "a rank has one GPU"),
        ({"extra": ["exclusive"]}, "each must be one option of sbatch"),
        ({"time": "00:01:00"}, "slurm.signal_seconds is 120, but the wall time is only 00:01:00"),
        ({"time": "0"}, "a job needs some time"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        Slurm(**settings)


def test_an_evaluation_is_given_by_options_or_by_a_task_of_the_harness(tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text("tasks: [a, b]\nshots: [0, 5]\nlimit: 10\nema: true\n")
    assert evaluate_options(path) == ["--tasks", "a,b", "--shots", "0,5", "--limit", "10", "--ema"]
    path.write_text("task: mine\ndataset_path: json\nprocess_docs: !function f.g\n")
    assert evaluate_options(path) == ["--tasks", "mine", "--include", str(tmp_path)]
    path.write_text("taks: [a]\n")
    with pytest.raises(InputError, match="unrecognized arguments: --taks"):
        evaluate_options(path)
