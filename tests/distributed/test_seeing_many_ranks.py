"""What two ranks log of their steps: the norms of one rank, the noise scale of its micro-batches, memory and waiting of each."""

import csv
import json
from pathlib import Path

import pytest
from distributed.session import fit_command, run_commands

pytestmark = pytest.mark.slow

STEPS, BATCH = 12, 512
LATE_SECONDS = 0.1
CALLBACKS = "distributed.callbacks_for_tests"


def write_config(folder: Path, tokens: Path, strategy: str, micro_batch: int, **trainer) -> list[str]:
    """The command that trains 12 steps of 16 sequences in fp32."""
    config = {
        "trainer": {
            "default_root_dir": str(folder), "log_every_n_steps": 1, "enable_progress_bar": False, "precision": "32-true",
            "accelerator": "cpu", "strategy": strategy, "devices": 1 if strategy == "single" else 2, **trainer,
        },
        "model": {
            "architecture": {
                "class_path": "TransformerConfig",
                "init_args": {"vocab_size": 512, "context": 32, "layers": 2, "width": 32, "heads": 2},
            },
            "optimizer": {"learning_rate": 1e-3},
            "noise_scale": True,
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": micro_batch, "total_tokens": STEPS * BATCH,
            "validation_tokens": 1000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    return fit_command(folder, config)


@pytest.fixture(scope="module")
def root(tokens_folder, tmp_path_factory) -> Path:
    """A folder of runs on one and on two ranks, and `said`, what the latter printed."""
    root = tmp_path_factory.mktemp("runs")
    late = {"class_path": f"{CALLBACKS}.SlowRank", "init_args": {"seconds": LATE_SECONDS}}
    by_hand = {"callbacks": [{"class_path": f"{CALLBACKS}.NoiseByHand"}]}
    one = {"one": ("single", 8, by_hand), "one accumulated": ("single", 4, by_hand)}
    two = {
        "ddp": ("ddp", 8, {}),
        "ddp accumulated": ("ddp", 4, {}),
        "ddp, one late": ("ddp", 8, {"callbacks": [late]}),
        "zero2": ("zero2", 8, {}),
        "zero3": ("zero3", 8, {}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        for ranks, runs in ((1, one), (2, two)):
            commands = [
                write_config(root / name, tokens_folder, s, size, **more) for name, (s, size, more) in runs.items()
            ]
            said = run_commands(commands, ranks)
    (root / "said").write_text(said)
    return root


@pytest.fixture(scope="module")
def runs(root) -> dict[str, list[dict[str, str]]]:
    """The logged steps of each run."""
    found = {}
    for path in root.glob("*/metrics.csv"):
        with path.open() as file:
            found[path.parent.name] = [row for row in csv.DictReader(file) if row["train/loss"]]
    return found


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


@pytest.mark.parametrize("name", ["ddp", "ddp accumulated", "zero2", "zero3"])
def test_norms_of_weights_by_layer_are_those_of_one_rank(runs, name):
    columns = [c for c in runs["one"][0] if c.startswith("norm/weight/")]
    assert len(columns) == 5
    for each in columns:
        assert column(runs[name], each) == pytest.approx(column(runs["one"], each), rel=1e-4)


def test_norms_of_gradients_by_layer_are_those_of_one_rank_and_left_out_under_zero(runs):
    columns = [c for c in runs["one"][0] if c.startswith("norm/grad/")]
    assert len(columns) == 5
    for each in columns:
        assert column(runs["ddp"], each) == pytest.approx(column(runs["one"], each), rel=5e-3)
        assert each not in runs["zero2"][0]


@pytest.mark.parametrize(("name", "alone"), [("ddp", "one"), ("ddp accumulated", "one accumulated")])
def test_the_noise_scale_of_two_ranks_compares_the_parts_of_both(runs, root, name, alone):
    # What are two ranks' first micro-batches are the first two of one rank.
    expected = json.loads((root / alone / "by_hand.json").read_text())
    assert len(expected) == len(runs[name]) == STEPS
    assert column(runs[name], "train/noise_scale") == pytest.approx(expected, rel=1e-2)


def test_zero_says_that_it_measures_no_noise_scale(runs, root):
    assert "train/noise_scale" not in runs["zero2"][0]
    assert "model.noise_scale is not measured under ZeRO" in (root / "said").read_text()


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_each_rank_has_its_memory_and_the_phases_their_seconds(runs, name):
    last = runs[name][-1]
    assert float(last["memory/rank0_gb"]) > 0.1
    assert float(last["memory/rank1_gb"]) > 0.1
    assert all(float(last[f"time/{phase}"]) > 0 for phase in ("forward", "backward", "optimizer"))
    assert ("time/communication" in last) == (name == "ddp")


def test_waiting_for_a_late_rank_is_communication(runs):
    late, on_time = (column(runs[name], "time/communication")[2:] for name in ("ddp, one late", "ddp"))
    assert min(late) > 0.8 * LATE_SECONDS
    assert min(on_time) < 0.2 * LATE_SECONDS
