"""A spike on one rank is a spike on all: they leave the same steps out, whoever holds the gradients, and train as plain PyTorch does."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from distributed.session import run_commands
from distributed.test_one_curve import BATCH, MODEL, PEAK, WARMUP_STEPS, plain_pytorch
from spoilers import PowerCut

from pipeline.cli import main
from pipeline.run_state import ends
from pipeline.state_files import StateFolder

STEPS = 16


def command(
    folder: Path,
    tokens: Path,
    strategy: str | dict,
    spikes: dict,
    poison: dict,
    *,
    ranks: int,
    precision: str = "32-true",
) -> list[str]:
    config = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "devices": ranks, "strategy": strategy, "precision": precision,
            "log_every_n_steps": 1, "enable_progress_bar": False, "gradient_clip_val": 0.5,
            "callbacks": [{"class_path": "spoilers.Poison", "init_args": poison}],
        },
        "model": {
            "architecture": {"class_path": "TransformerConfig", "init_args": MODEL},
            "optimizer": {"learning_rate": PEAK},
            "schedule": {"warmup_tokens": WARMUP_STEPS * BATCH},
            "ema_half_life_tokens": 2000,
        },
        "data": {
            "path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 4, "total_tokens": STEPS * BATCH,
            "validation_tokens": 500,
        },
        "checkpoint": {"every_tokens": BATCH, "keep_last": 99},
        "spikes": spikes,
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(folder / "given.yaml")]


def trained(folder: Path) -> dict[int, dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file) if row["train/loss"] or row.get("train/skipped")}


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [["zero2"], ["ddp", "zero1", "zero3"]])
def test_two_ranks_leave_out_what_is_a_spike_on_one_and_train_as_plain_pytorch(
    strategies, tokens_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    poison = {"steps": [11], "rank": 1}
    commands = []
    for strategy in strategies:
        commands.append(
            command(tmp_path / f"{strategy}-skip", tokens_folder, strategy, {"policy": "skip"}, poison, ranks=2)
        )
        finite = {
            "policy": "roll_back",
            "back_steps": 3,
            "skip_steps": 5,
            "norm_times": 8,
            "warmup_steps": 4,
            "window": 8,
        }
        commands.append(
            command(
                tmp_path / f"{strategy}-back", tokens_folder, strategy, finite, poison | {"factor": 1000.0}, ranks=2
            )
        )
    output = run_commands(commands, 2)
    assert "Traceback" not in output
    for policy, left_out in (("skip", {11}), ("back", {8, 9, 10, 11, 12})):
        expected = plain_pytorch(tokens_folder, STEPS, left_out)
        for strategy in strategies:
            rows = trained(tmp_path / f"{strategy}-{policy}")
            assert sorted(rows) == [*range(1, STEPS + 1)]
            assert {step for step, row in rows.items() if row["train/skipped"]} == left_out, (strategy, policy)
            for step in set(rows) - left_out:
                loss, norm = (float(rows[step][name]) for name in ("train/loss", "train/grad_norm"))
                assert loss == pytest.approx(expected["train/loss"][step - 1], rel=1e-5), (strategy, policy, step)
                assert norm == pytest.approx(expected["train/grad_norm"][step - 1], rel=1e-3), (strategy, policy, step)
    for strategy in strategies:
        assert math.isnan(float(trained(tmp_path / f"{strategy}-skip")[11]["train/loss"]))
        assert_step_changed_nothing(tmp_path / f"{strategy}-skip", 11)


def assert_step_changed_nothing(run: Path, step: int) -> None:
    """Weights, moments and average are the same bit for bit, and so are the optimizer's counts; the step after that changes them."""
    before, at, after = (StateFolder(run / "checkpoints" / f"step-{step + k:08d}") for k in (-1, 0, 1))
    assert {"weights", "ema", "exp_avg", "exp_avg_sq"} == set(at.kinds)
    assert all(torch.equal(before.tensor(*key), at.tensor(*key)) for key in at.index)
    assert before.training()["optimizer_scalars"] == at.training()["optimizer_scalars"]
    assert not all(torch.equal(at.tensor(*key), after.tensor(*key)) for key in at.index)


OFFLOADED = {
    f"zero{stage}-offload": {
        "class_path": "pipeline.distributed.ZeRO",
        "init_args": {"stage": stage, "offload_optimizer": "cpu"},
    }
    for stage in (2, 3)
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_spike_on_one_rank_changes_nothing_in_any_precision_or_offloaded(
    precision, tokens_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    poison, names = {"steps": [11], "rank": 1}, ["ddp", "zero1", "zero2", "zero3", *OFFLOADED]
    commands = []
    for name in names:
        strategy = OFFLOADED.get(name, name)
        skip = {"policy": "skip"}
        commands.append(command(tmp_path / name, tokens_folder, strategy, skip, poison, ranks=2, precision=precision))
    run_commands(commands, 2)
    for name in names:
        assert {step for step, row in trained(tmp_path / name).items() if row["train/skipped"]} == {11}
        assert_step_changed_nothing(tmp_path / name, 11)


@pytest.mark.slow
def test_what_one_process_decided_to_leave_out_is_left_out_on_two_ranks_too(tokens_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    spikes = {"policy": "roll_back", "back_steps": 3, "skip_steps": 5}
    one = command(tmp_path / "run", tokens_folder, "single", spikes, {"steps": [11]}, ranks=1)
    given = tmp_path / "run" / "given.yaml"
    config = yaml.safe_load(given.read_text())
    callbacks = config["trainer"]["callbacks"]
    callbacks.append({"class_path": "spoilers.CutAt", "init_args": {"step": 8, "starts": 2}})
    given.write_text(yaml.safe_dump(config))
    with pytest.raises(PowerCut):
        main(one)
    callbacks.pop()
    given.write_text(yaml.safe_dump(config))
    run_commands([[*one, "--ckpt_path", "last", "--trainer.strategy", "zero2", "--trainer.devices", "2"]], 2)
    rows, left_out = trained(tmp_path / "run"), {8, 9, 10, 11, 12}
    assert {step for step, row in rows.items() if row["train/skipped"]} == left_out
    expected = plain_pytorch(tokens_folder, STEPS, left_out)["train/loss"]
    for step in set(rows) - left_out:
        assert float(rows[step]["train/loss"]) == pytest.approx(expected[step - 1], rel=1e-5), step


@pytest.mark.slow
def test_two_ranks_agree_on_which_checkpoint_is_whole_and_on_stopping(tokens_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    commands = {}
    for name in ("one damaged", "all damaged"):
        commands[name] = command(tmp_path / name, tokens_folder, "single", {}, {"steps": []}, ranks=1)
        assert main(commands[name]) == 0
        checkpoints = sorted((tmp_path / name / "checkpoints").glob("step-*"))
        for path in checkpoints[-1 if name == "one damaged" else 0 :]:
            content = bytearray((path / "training.pt").read_bytes())
            content[100] ^= 1
            (path / "training.pt").write_bytes(content)
    before = trained(tmp_path / "one damaged")
    commands["stopped"] = command(tmp_path / "stopped", tokens_folder, "zero2", {}, {"steps": [11], "rank": 1}, ranks=2)
    on_two = ["--ckpt_path", "last", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    output = run_commands(
        [[*commands["one damaged"], *on_two], [*commands["all damaged"], *on_two], commands["stopped"]], 2,
        statuses=[0, 2, 77],
    )  # fmt: skip
    assert output.count("step-00000016 is damaged and was passed over") == 1
    assert output.count("No checkpoint of") == 2
    for step, row in trained(tmp_path / "one damaged").items():
        assert float(row["train/loss"]) == pytest.approx(float(before[step]["train/loss"]), rel=1e-5)
    last = (tmp_path / "stopped" / "checkpoints" / "last.ckpt").resolve()
    assert last.name == "step-00000010"
    assert [(end["code"], end["rank"], end["step"]) for end in sorted(ends(tmp_path / "stopped"), key=lambda e: e["rank"])] == [
        (77, 0, 10), (77, 1, 10),
    ]  # fmt: skip
