"""`slurm/evaluate.sbatch` on several tasks: srun's ranks share the work, and the scores are those of one process."""

import json
from pathlib import Path

import pytest
from evaluation.conftest import documents, gpt, run_directory, tokenizer  # noqa: F401 - fixtures

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "evaluate.sbatch"


def test_two_tasks_of_srun_score_what_one_process_scores(slurm, run_directory, tmp_path):  # noqa: F811
    scores = {}
    for tasks in (1, 2):
        results = tmp_path / str(tasks) / "results.json"
        job = slurm.submit(
            "-N1", f"--ntasks={tasks}", "--cpus-per-task=2", "-o", tmp_path / f"output{tasks}", "-D", SCRIPT.parents[1], SCRIPT, run_directory,
            "--tasks", "arithmetic_choice,unscramble_cycle", "--shots", "0,1", "--limit", "6", "--fresh", "--output", results,
        )  # fmt: skip
        assert slurm.wait(job, seconds=120) == "COMPLETED", (tmp_path / f"output{tasks}").read_text()
        scores[tasks] = json.loads(results.read_text())["pipeline"]["scores"]
    assert (tmp_path / "output2").read_text().count("Prompts and answers") == 1
    assert [(row["task"], row["metric"], row["score"], row["n"]) for row in scores[2]] == [
        (row["task"], row["metric"], row["score"], row["n"]) for row in scores[1]
    ]
