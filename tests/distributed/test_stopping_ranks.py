"""Several ranks that are stopped: a signal to one of them ends all, at one place, and the continued run is the one that never stopped."""

import csv
import json
import signal
from pathlib import Path

import pytest
from distributed.session import fit_command, run_commands

from pipeline import exit_codes, run_state
from pipeline.checkpoint import open_state, read_weights

pytestmark = pytest.mark.slow

BATCH = 512
OF_THE_CLOCK = ("seconds", "time/", "memory/", "train/tokens_per_second", "train/mfu", "train/data_wait")


def sends(**place) -> dict:
    return {"class_path": "stopping.Sends", "init_args": {"numbers": [int(signal.SIGUSR1)], **place}}


SLOW = {"class_path": "distributed.callbacks_for_tests.SlowRank", "init_args": {"seconds": 0.05}}
SLOW_IN_VALIDATION = {"class_path": "stopping.SlowBatches", "init_args": {"seconds": 0.05, "rank": 0}}

STOPS = {
    "one rank in training": (sends(hook="on_train_batch_start", step=3, rank=1), 4),
    "one rank in a validation": (sends(hook="on_validation_batch_end", step=5, times=1, rank=1), 5),
    "one rank before training": (sends(hook="on_train_start", step=5, rank=1), None),
}


class Plan:
    """Fits, one after the other in one session: a run that is never stopped, and one that is stopped at every place."""

    def __init__(self, folder: Path, tokens: Path, strategy: str, *, micro_batch: int, prefetch: int):
        self.folder, self.commands, self.statuses = folder, [], []
        self.options = {
            "tokens": tokens, "strategy": strategy, "micro_batch": micro_batch, "prefetch": prefetch,
        }  # fmt: skip
        self.fit("whole", "0")
        for number, (callback, _) in enumerate(STOPS.values()):
            self.fit("stopped", f"{number}", callback, status=138)
        self.fit("stopped", "last")

    def fit(self, run: str, attempt: str, *callbacks: dict, status: int = 0) -> None:
        o, folder = self.options, self.folder / f"{run}-{attempt}"
        samples = {
            "class_path": "pipeline.callbacks.sample_record.SampleRecord", "init_args": {"folder": str(self.folder / f"{run}-samples")},
        }  # fmt: skip
        config = {
            "trainer": {
                "default_root_dir": str(self.folder / run), "accelerator": "cpu", "devices": 2, "strategy": o["strategy"],
                "precision": "32-true", "log_every_n_steps": 1, "enable_progress_bar": False,
                "callbacks": [*callbacks, SLOW, SLOW_IN_VALIDATION, samples],
            },
            "model": {
                "architecture": {"class_path": "TransformerConfig", "init_args": {
                    "vocab_size": 512, "context": 32, "layers": 2, "width": 32, "heads": 2,
                }},
                "optimizer": {"learning_rate": 3e-3},
            },
            "data": {
                "path": str(o["tokens"]), "context": 32, "batch_tokens": BATCH, "micro_batch": o["micro_batch"],
                "total_tokens": 8 * BATCH, "validate_every_tokens": 5 * BATCH, "validation_tokens": 2000, "prefetch": o["prefetch"],
            },
            "wandb": {"mode": "disabled"},
            "ckpt_path": "last",
        }  # fmt: skip
        self.commands.append(fit_command(folder, config))
        self.statuses.append(status)

    def outcome(self, run: str) -> dict:
        with (self.folder / run / "metrics.csv").open() as file:
            rows = [
                {name: value for name, value in row.items() if value and not name.startswith(OF_THE_CLOCK)}
                for row in csv.DictReader(file)
            ]
        files = sorted((self.folder / f"{run}-samples").glob("samples-*.jsonl"))
        last = open_state((self.folder / run / "checkpoints" / "last.ckpt").resolve())
        return {
            "rows": rows,
            "samples": {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files},
            "weights": {name: values.tolist() for name, values in read_weights(last).items()},
            "best": (self.folder / run / "checkpoints" / "best.ckpt").resolve().name,
        }


def test_a_signal_to_one_rank_stops_all_at_one_place_and_nothing_is_lost(tokens_folder, tmp_path):
    plans = [
        Plan(tmp_path / "ddp", tokens_folder, "ddp", micro_batch=8, prefetch=0),
        Plan(tmp_path / "accumulated", tokens_folder, "ddp", micro_batch=4, prefetch=2),
        Plan(tmp_path / "zero2", tokens_folder, "zero2", micro_batch=4, prefetch=2),
    ]
    output = run_commands(
        [command for plan in plans for command in plan.commands], 2,
        statuses=[status for plan in plans for status in plan.statuses],
    )  # fmt: skip
    for plan in plans:
        whole = plan.outcome("whole")
        assert len(whole["samples"]) == 2
        assert [row["step"] for row in whole["rows"]] == [*"12345", "5", *"678", "8"]
        assert plan.outcome("stopped") == whole
    for step in (step for _, step in STOPS.values() if step):
        assert output.count(f"Stopped by SIGUSR1 after step {step} of 8") == len(plans)
    assert output.count("Stopped by SIGUSR1 before the first step; nothing was trained") == len(plans)
    # Every rank has said so, the one that had no signal, too.
    assert {end["code"] for end in run_state.ends(tmp_path / "ddp" / "stopped")} == {138}
    assert len(run_state.ends(tmp_path / "ddp" / "stopped")) == 2
    assert exit_codes.of_signal(signal.SIGUSR1) == 138
