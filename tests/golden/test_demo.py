"""The demo, by the README's own commands in a new folder: its figures hold, and its report shows them."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Measured when they were set; see docs/log.md. The corpus is the documentation of the installed versions, so it moves a little.
BITS_PER_BYTE = {"gpt": 1.949, "lstm": 1.845}
TOLERANCE = 0.06


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    import shlex

    from test_readme import demo_commands

    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for command in demo_commands():
        done = subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", ["gpt", "lstm"])
def test_the_demo_reaches_its_stated_bits_per_byte(demo, run):
    validation = json.loads((demo / "runs/demo" / run / "validation.json").read_text())
    assert validation["bits_per_byte"] == pytest.approx(BITS_PER_BYTE[run], abs=TOLERANCE)
    assert validation["bits_per_byte"] <= 2.1
    # The two figures are of the same loss.
    assert validation["perplexity"] == pytest.approx(math.exp(validation["loss"]))
    bits = validation["loss"] * validation["tokens"] / math.log(2)
    assert validation["bits_per_byte"] == pytest.approx(bits / validation["bytes"])


@pytest.mark.slow
def test_the_demo_model_finds_a_last_word_above_chance(demo):
    scores = json.loads((demo / "runs/demo/gpt/evaluation/results.json").read_text())["pipeline"]["scores"]
    [score] = [s for s in scores if (s["task"], s["shots"], s["metric"]) == ("last_word_choice", 0, "acc")]
    assert score["score"] - 3 * score["stderr"] > score["chance"] == 0.25


@pytest.mark.slow
def test_the_demo_report_is_one_page_with_both_runs(demo):
    page = (demo / "runs/demo/report.html").read_text()
    for text in ("gpt", "lstm", "python_docs", "last_word_choice", "Return the number of"):
        assert text in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_the_demo_run_again_has_nothing_to_do(demo):
    command = [sys.executable, "-m", "data_prep", "run", "--config", "configs/demo/data.yaml"]
    again = subprocess.run(command, cwd=demo, capture_output=True, text=True, check=True)
    assert again.stdout.count("unchanged") == 5
    before = (demo / "runs/demo/gpt/metrics.csv").read_text()
    command = [sys.executable, "-m", "pipeline", "fit", "--config", "configs/demo/gpt.yaml"]
    finished = subprocess.run(command, cwd=demo, capture_output=True, text=True, check=True)
    assert "step 960 of 960" in finished.stdout
    assert (demo / "runs/demo/gpt/metrics.csv").read_text() == before
