"""What a run on one rank logs of its steps beside the loss (norms, times, memory, the noise scale), and what it averages."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from gradients_by_hand import ByHand
from lightning import Callback

from pipeline import metrics
from pipeline.callbacks.metrics_log import MetricsLog
from pipeline.callbacks.step_times import StepTimes
from pipeline.cli import main
from pipeline.norms import layer_group
from pipeline.training_cli import TrainingCLI

GPT = {
    "class_path": "TransformerConfig",
    "init_args": {"vocab_size": 512, "context": 32, "layers": 2, "width": 32, "heads": 2},
}
STEPS, BATCH, CONTEXT = 12, 512, 32


def fit(folder: Path, tokens: Path, *arguments: str, callback: Callback | None = None) -> list[dict[str, str]]:
    """Train for 12 steps in fp32 without a peak to measure; return the rows of metrics.csv."""
    config = {
        "trainer": {
            "default_root_dir": str(folder / "run"), "log_every_n_steps": 1, "enable_progress_bar": False,
            "precision": "32-true", "accelerator": "cpu",
        },
        "model": {"architecture": GPT, "optimizer": {"learning_rate": 3e-3}},
        "data": {
            "path": str(tokens), "context": CONTEXT, "batch_tokens": BATCH, "micro_batch": 4, "total_tokens": STEPS * BATCH,
            "validation_tokens": 1000,
        },
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    original = TrainingCLI.instantiate_trainer

    def with_callback(self, **kwargs):
        trainer = original(self, **kwargs)
        trainer.callbacks += [callback] if callback else []  # pyright: ignore[reportAttributeAccessIssue]
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingCLI, "instantiate_trainer", with_callback)
        patch.setattr(metrics, "matmul_peak", lambda *args, **kwargs: 1e12)
        assert main(["fit", "--config", str(folder / "config.yaml"), *arguments]) == 0
    with (folder / "run" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def steps_of(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if row["train/loss"]]


def test_the_noise_scale_logged_is_that_of_each_steps_gradients_computed_apart(tokens_folder, tmp_path):
    by_hand = ByHand()
    rows = steps_of(fit(tmp_path, tokens_folder, "--model.noise_scale", "true", callback=by_hand))
    expected = by_hand.noise_scales(parts=1)
    assert len(rows) == len(expected) == STEPS
    assert any(expected)
    for row, value in zip(rows, expected, strict=True):
        assert float(row["train/noise_scale"] or 0) == pytest.approx(value or 0, rel=1e-3)


def test_a_noise_scale_that_cannot_be_measured_is_said_in_one_sentence(tokens_folder, tmp_path, capfd):
    rows = fit(tmp_path, tokens_folder, "--model.noise_scale", "true", "--data.micro_batch", "16")
    assert "train/noise_scale" not in rows[0]
    assert (
        capfd.readouterr().out.count("model.noise_scale is not measured in steps of one micro-batch on one rank") == 1
    )


def test_norms_logged_are_those_of_each_group_of_layers(tokens_folder, tmp_path):
    by_hand = ByHand()
    rows = steps_of(fit(tmp_path, tokens_folder, callback=by_hand))
    groups = ["token_embedding", "position_embedding", "blocks.0", "blocks.1", "norm"]
    assert [name for name in rows[0] if name.startswith("norm/")] == [
        f"norm/{k}/{g}" for k in ("grad", "weight") for g in groups
    ]
    for step in (0, 5):
        # The weights in the row of a step are those after it, which the next step begins with.
        weights = dict(by_hand.steps[step + 1]["model"].named_parameters())
        for kind, tensors in (("grad", by_hand.gradients(step, slice(None))), ("weight", weights)):
            for group in groups:
                numbers = torch.cat([t.detach().flatten() for name, t in tensors.items() if layer_group(name) == group])
                assert float(rows[step][f"norm/{kind}/{group}"]) == pytest.approx(float(numbers.norm()), rel=1e-4)


def test_the_phases_of_a_step_lie_within_it_and_a_pause_stands_beside_it(tokens_folder, tmp_path):
    rows = fit(tmp_path, tokens_folder, "--checkpoint.every_tokens", str(4 * BATCH))
    steps = steps_of(rows)
    seconds = [float(row["seconds"]) for row in steps]
    for row, before, after in zip(steps[1:], seconds, seconds[1:], strict=False):
        phases = [float(row[f"time/{name}"]) for name in ("data", "forward", "backward", "optimizer")]
        assert min(phases[1:]) > 0
        assert sum(phases) < after - before + 2e-3  # what the first row of a pause rounds
    assert "time/communication" not in steps[0]
    assert [row["step"] for row in steps if row["time/checkpoint"]] == ["5", "9"]
    assert all(float(row["time/validation"]) > 0 for row in rows if row["val/loss"])
    assert float(steps[-1]["memory/rank0_gb"]) > 0.1


class KeepAverage(Callback):
    """Holds on to the average of the weights as it stands at the end, and to the weights after each step."""

    def __init__(self):
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        if pl_module.step_ended:
            self.weights.append({name: p.detach().double().clone() for name, p in pl_module.model.named_parameters()})

    def on_train_end(self, trainer, pl_module):
        self.average = {piece.name: piece.values.clone() for piece in pl_module.averaged.pieces()}


def test_the_average_of_a_run_is_the_mean_at_first_and_then_forgets_half_in_a_half_life(tokens_folder, tmp_path):
    kept = KeepAverage()
    fit(tmp_path, tokens_folder, "--model.ema_half_life_tokens", str(2 * BATCH), callback=kept)
    expected = dict(kept.weights[0])
    for number, weights in enumerate(kept.weights[1:], start=2):
        share = max(1 / number, 1 - 0.5 ** (1 / 2))
        expected = {name: (1 - share) * expected[name] + share * weights[name] for name in weights}
    assert len(kept.weights) == STEPS
    for name, values in kept.average.items():
        assert torch.allclose(values.double(), expected[name].flatten(), rtol=1e-5, atol=1e-7)


def test_muon_trains_and_the_rate_of_its_adamw_part_keeps_its_fraction(tokens_folder, tmp_path):
    class Rates(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.last = [(group["algorithm"], group["lr"]) for group in trainer.optimizers[0].param_groups]

    muon = [
        "--model.optimizer",
        "Muon",
        "--model.optimizer.adamw_scale",
        "0.5",
        "--model.optimizer.learning_rate",
        "5e-3",
    ]
    rates = Rates()
    rows = steps_of(fit(tmp_path, tokens_folder, *muon, callback=rates))
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"]) - 0.3
    rate = float(rows[-1]["train/learning_rate"])
    assert rates.last == [("muon", rate), ("adamw", rate / 2), ("adamw", rate / 2)]


class SlowClock:
    """As a GPU's stream: each mark is a second after the one before, and the work lags three marks behind."""

    def __init__(self):
        self.marks = 0

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def passed(self, mark: int) -> bool:
        return mark <= self.marks - 3

    def seconds(self, start: int, end: int) -> float:
        return float(end - start)


def micro_batch(times: StepTimes, trainer: Any, *, buckets: int) -> None:
    times.on_train_batch_start(trainer, None, None, 0)  # pyright: ignore[reportArgumentType]
    times.on_before_backward()
    for _ in range(buckets):
        times.on_bucket(None)
    times.on_after_backward()
    times.on_train_batch_end(trainer)


def test_work_that_a_gpu_has_not_done_yet_counts_when_it_has_and_nothing_waits_for_it():
    trainer: Any = SimpleNamespace(global_step=0, train_dataloader=SimpleNamespace(waited=0.0))
    times = StepTimes()
    times.clock = SlowClock()
    times.begin(trainer)
    for _ in range(10):
        micro_batch(times, trainer, buckets=2)
        assert len(times.pending) <= 4
    times.clock.marks += 3  # the host waits for the loss of a logged step
    trainer.global_step, trainer.train_dataloader.waited = 5, 1.5
    # Backward ends when the second of two buckets is sent; what follows until it is done is communication.
    expected = {"data": 0.3, "forward": 2.0, "backward": 4.0, "communication": 2.0, "optimizer": 2.0}
    assert times.read(trainer, None) == {f"time/{phase}": seconds for phase, seconds in expected.items()}  # pyright: ignore


class Peaks:
    """Stands in for measurements of a machine that is busy at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *flops: float):
        self.flops, self.seconds = [*flops], []
        monkeypatch.setattr(metrics, "matmul_peak", self)

    def __call__(self, device, dtype, seconds: float) -> float:
        self.seconds.append(seconds)
        return self.flops.pop(0)


def test_the_peak_is_the_best_of_several_measurements_and_survives_a_resume(monkeypatch):
    task: Any = SimpleNamespace(device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(precision="bf16-mixed")
    measured = Peaks(monkeypatch, 5.0, 8.0, 7.0, 3.0, 6.0)
    log = MetricsLog()
    log.on_fit_start(trainer, task)
    assert log.peak_flops == 5.0
    log.measure_peak(0.05)
    assert log.peak_flops == 8.0
    log.measure_peak(0.05)
    assert log.peak_flops == 8.0

    resumed = MetricsLog()
    resumed.load_state_dict(json.loads(json.dumps(log.state_dict())))
    resumed.on_fit_start(trainer, task)
    assert resumed.peak_flops == 8.0
    assert measured.seconds[3] < measured.seconds[0]

    other_format: Any = SimpleNamespace(precision="32-true")
    resumed.on_fit_start(other_format, task)
    assert resumed.peak_flops == 6.0
