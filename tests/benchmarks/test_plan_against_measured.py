"""What a plan says of memory and time on a CPU, beside what training takes: the demo's models, and shapes that nobody has tried.

Run it on an idle machine: `make bench`. It measures the machine first. Memory is the growth of the process from before the model is
built to its peak; time is the training clock of metrics.csv, the best of its logged stretches.
"""

import csv
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

ROOT = Path(__file__).parent.parent.parent
TOKENS = ROOT / "data/demo/tokens"
STEPS, LOGGED = 40, 4
MEMORY, TIME = 0.15, 0.25
"""How far a plan may be off."""

GPT, LSTM = (["--config", str(ROOT / f"configs/demo/{name}.yaml")] for name in ("gpt", "lstm"))
RUNS = {
    "demo gpt": GPT,
    "demo lstm": LSTM,
    "gpt 4 x 192": [
        *GPT, "--model.architecture.layers=4", "--model.architecture.width=192", "--data.context=128", "--data.micro_batch=24",
        "--data.batch_tokens=3072",
    ],
    "gpt 3 x 384, accumulated": [
        *GPT, "--model.architecture.layers=3", "--model.architecture.width=384", "--data.micro_batch=4", "--data.batch_tokens=2048"
    ],
    "lstm 2 x 384": [*LSTM, "--model.architecture.layers=2", "--data.context=64", "--data.micro_batch=16", "--data.batch_tokens=1024"],
}  # fmt: skip

WATCHED = """
import json, sys
from itertools import pairwise
from pathlib import Path
from pipeline.cli import main
from data_prep.process_memory import peak_resident_bytes
from pipeline.task import LanguageModelling

out, options, before = Path(sys.argv[1]), sys.argv[2:], []
configure = LanguageModelling.configure_model

def noting(self):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    before.append(int(line.split()[1]) * 1024)
    return configure(self)

def telling(self):
    out.write_text(json.dumps(peak_resident_bytes() - before[0]))

LanguageModelling.configure_model = noting
LanguageModelling.on_fit_end = telling
main(["fit", *options])
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """What `bench` finds of this machine."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    subprocess.run(
        [sys.executable, "-m", "pipeline", "bench", "--output", str(file)],
        check=True,
        cwd=file.parent,
        env=environment(),
    )
    return file


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def train(options: list[str], folder: Path) -> tuple[int, float]:
    """Bytes by which the process grew, and seconds of a step."""
    out = folder / "growth.json"
    subprocess.run(
        [sys.executable, "-c", WATCHED, str(out), *options], check=True, env=environment(), stdout=subprocess.DEVNULL
    )
    with (folder / "run" / "metrics.csv").open() as file:
        clock = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file) if row.get("train/loss")]
    steps = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(clock)]
    return json.loads(out.read_text()), min(steps)


@pytest.mark.skipif(not TOKENS.is_dir(), reason="the demo's tokens are not here: make demo")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", RUNS)
def test_a_plan_is_near_what_training_takes(name, precision, bench, tmp_path, capsys):
    from pipeline.planning.plan import make_plan

    batch = next((int(o.partition("=")[2]) for o in RUNS[name] if o.startswith("--data.batch_tokens")), 2048)
    options = [
        *RUNS[name], f"--trainer.precision={precision}", f"--data.path={TOKENS}", f"--data.total_tokens={STEPS * batch}",
        f"--data.validate_every_tokens={STEPS * batch}", "--data.validation_tokens=8192", f"--trainer.log_every_n_steps={LOGGED}",
        f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.enable_progress_bar=false", "--wandb.mode=disabled",
    ]  # fmt: skip
    plan = make_plan(options, bench=str(bench))
    grown, seconds = train(options, tmp_path)
    assert plan.step_seconds is not None
    memory, time = plan.chosen.memory.total / grown, plan.step_seconds / seconds
    with capsys.disabled():
        print(
            f"\n| {name} | {precision} | {plan.chosen.memory.total / 1e6:.0f} | {grown / 1e6:.0f} | {memory:.2f} "
            f"| {plan.step_seconds * 1e3:.1f} | {seconds * 1e3:.1f} | {time:.2f} |"
        )
    assert abs(memory - 1) <= MEMORY
    assert abs(time - 1) <= TIME
