"""A step that is a spike changes nothing; what is left out, or gone back over, leaves the run as if those steps had no data."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from spoilers import PowerCut
from tiny_runs import BATCH, GPT, LSTM, write_config

from pipeline.callbacks.spike_guard import SpikeGuard
from pipeline.cli import main
from pipeline.exit_codes import SPIKE_STOPPED
from pipeline.run_state import ends
from pipeline.spikes import Spikes, StepRanges, Usual
from pipeline.state_files import StateFolder


def poison(*steps: int, **options) -> dict:
    return {"class_path": "spoilers.Poison", "init_args": {"steps": list(steps), **options}}


def cut(step: int, starts: int) -> dict:
    return {"class_path": "spoilers.CutAt", "init_args": {"step": step, "starts": starts}}


def configured(folder: Path, tokens: Path, *callbacks: dict, architecture: dict = GPT, **overrides) -> Path:
    settings = {
        "trainer__accelerator": "cpu", "trainer__precision": "32-true", "checkpoint__every_tokens": BATCH, "checkpoint__keep_last": 99,
    }  # fmt: skip
    return write_config(
        folder / "given.yaml", tokens, architecture, trainer__callbacks=list(callbacks), **settings | overrides
    )


def fit(config: Path, *options: str) -> int:
    return main(["fit", "--config", str(config), *options])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def figures(folder: Path) -> list[tuple[str, str, str, str]]:
    return [(row["step"], row["train/loss"], row["train/grad_norm"], row["val/loss"]) for row in rows(folder)]


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "spikes.jsonl").read_text().splitlines()]


def opened(folder: Path, step: int) -> StateFolder:
    return StateFolder(folder / "run" / "checkpoints" / f"step-{step:08d}")


def state(folder: Path, step: int) -> dict[tuple[str, str], torch.Tensor]:
    checkpoint = opened(folder, step)
    return {key: checkpoint.tensor(*key) for key in checkpoint.index}


def assert_equal(one: dict[tuple[str, str], torch.Tensor], other: dict[tuple[str, str], torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert torch.equal(values, other[key]), key


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


KINDS = {
    "gpt with an average, accumulating": (GPT, {"model__ema_half_life_tokens": 1000, "data__micro_batch": 4}),
    "gpt in bf16 with fp32 masters": (GPT, {"trainer__precision": "bf16-true"}),
    "gpt under muon": (GPT, {"model__optimizer": {"class_path": "Muon"}}),
    "lstm on streams": (LSTM, {"data__order": "stream"}),
}


@pytest.mark.parametrize("kind", [slow(kind) if place else kind for place, kind in enumerate(KINDS)])
def test_a_skipped_step_leaves_weights_moments_average_and_carried_state_bit_for_bit(kind, tokens_folder, tmp_path):
    architecture, overrides = KINDS[kind]
    config = configured(
        tmp_path, tokens_folder, poison(5), architecture=architecture, spikes__policy="skip", **overrides
    )
    assert fit(config) == 0
    assert_equal(state(tmp_path, 4), state(tmp_path, 5))
    before, after = opened(tmp_path, 4).training(), opened(tmp_path, 5).training()
    assert before["optimizer_scalars"] == after["optimizer_scalars"]
    for one, other in zip(*(each["pipeline"].get("carried", []) for each in (before, after)), strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    changed = state(tmp_path, 6)
    assert any(not torch.equal(values, changed[key]) for key, values in state(tmp_path, 5).items())
    assert [row["step"] for row in rows(tmp_path) if row["train/skipped"]] == ["5"]
    assert all(
        np.isfinite(float(row["train/loss"])) for row in rows(tmp_path) if row["train/loss"] and row["step"] != "5"
    )
    assert opened(tmp_path, 10).record["skipped"] == [[5, 5]]
    assert "skipped" not in opened(tmp_path, 4).record


def test_a_spike_is_written_down_with_its_figures_limits_and_documents(tokens_folder, tmp_path, capsys):
    config = configured(
        tmp_path, tokens_folder, poison(7, factor=50), spikes__policy="skip", spikes__warmup_steps=3, spikes__window=5,
        spikes__loss_deviations=6, spikes__norm_times=3,
    )  # fmt: skip
    assert fit(config) == 0
    [line] = journal(tmp_path)
    assert (line["step"], line["done"]) == (7, "skip")
    earlier = [(float(r["train/loss"]), float(r["train/grad_norm"])) for r in rows(tmp_path)[1:6]]
    norm = next(each for each in line["outside"] if each["figure"] == "gradient norm")
    assert norm["limit"] == pytest.approx(3 * np.median([norm for _, norm in earlier]))
    assert norm["value"] > norm["limit"]
    assert "Step 7 is left out: its" in capsys.readouterr().out
    assert main(["inspect", "--run", str(tmp_path / "run"), "--step", "7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["left_out"] is True
    assert {each["name"] for each in line["documents"]} == {
        passage["document"]["name"] for sample in shown["samples"] for passage in sample["passages"]
    }
    assert main(["inspect", "--run", str(tmp_path / "run"), "--step", "6"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert main(["inspect", "--run", str(tmp_path / "run"), "--step", "7"]) == 0
    assert "left out because of a spike" in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_spike_the_guard_changes_nothing(tokens_folder, tmp_path):
    for policy in ("off", "roll_back"):
        config = configured(
            tmp_path / policy, tokens_folder, spikes__policy=policy, spikes__loss_deviations=1e6, spikes__norm_times=1e6,
            spikes__warmup_steps=2, checkpoint__keep_last=1,
        )  # fmt: skip
        assert fit(config) == 0
    assert figures(tmp_path / "off") == figures(tmp_path / "roll_back")
    assert_equal(state(tmp_path / "off", 10), state(tmp_path / "roll_back", 10))
    assert not (tmp_path / "roll_back" / "run" / "spikes.jsonl").exists()


@pytest.mark.parametrize("prefetch", [slow(0), 2])
def test_a_stopped_run_has_the_state_before_the_spike_and_goes_on_as_if_there_had_been_none(
    prefetch, tokens_folder, tmp_path, capsys
):
    settings = {"data__prefetch": prefetch, "data__micro_batch": 4, "checkpoint__every_tokens": None}
    assert fit(configured(tmp_path / "whole", tokens_folder, **settings)) == 0
    with pytest.raises(SystemExit) as ended:
        fit(configured(tmp_path / "stopped", tokens_folder, poison(6), **settings))
    assert ended.value.code == SPIKE_STOPPED
    [end] = ends(tmp_path / "stopped" / "run")
    assert (end["code"], end["step"]) == (SPIKE_STOPPED, 5)
    assert "Step 6 was not taken: its loss is nan" in end["reason"]
    assert "its batch begins with document" in end["reason"]
    assert "--spikes.policy skip" in capsys.readouterr().out
    # The same command stops again, at the same step.
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path / "stopped" / "given.yaml", "--ckpt_path", "last")
    assert ended.value.code == SPIKE_STOPPED
    assert fit(configured(tmp_path / "stopped", tokens_folder, **settings), "--ckpt_path", "last") == 0
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")
    assert_equal(state(tmp_path / "stopped", 10), state(tmp_path / "whole", 10))


@pytest.mark.slow
def test_too_many_skips_in_a_row_stop_the_run(tokens_folder, tmp_path):
    config = configured(
        tmp_path, tokens_folder, poison(2, 4, 5, 6, 7, 8), spikes__policy="skip", spikes__skips_in_a_row=3
    )
    with pytest.raises(SystemExit) as ended:
        fit(config)
    assert ended.value.code == SPIKE_STOPPED
    assert [(line["step"], line["done"]) for line in journal(tmp_path)] == [
        (2, "skip"), (4, "skip"), (5, "skip"), (6, "skip"), (7, "stop"),
    ]  # fmt: skip
    assert ends(tmp_path / "run")[0]["step"] == 6


BACK = {
    "spikes__policy": "roll_back", "spikes__back_steps": 2, "spikes__skip_steps": 4, "data__total_tokens": 14 * BATCH,
    "data__validate_every_tokens": 7 * BATCH, "checkpoint__every_tokens": 3 * BATCH, "model__ema_half_life_tokens": 1000,
    "data__micro_batch": 4,
}  # fmt: skip


def left_out_by_hand(
    folder: Path, tokens: Path, ranges: list[list[int]], architecture: dict = GPT, **overrides
) -> None:
    """A run that was told in advance what to leave out, at a checkpoint before that."""
    with pytest.raises(PowerCut):
        fit(configured(folder, tokens, cut(7, starts=1), architecture=architecture, **BACK | overrides))
    (folder / "run" / "left-out.json").write_text(json.dumps({"ranges": ranges, "rollbacks": 0}))
    assert fit(configured(folder, tokens, architecture=architecture, **BACK | overrides), "--ckpt_path", "last") == 0


@pytest.mark.parametrize("family", ["gpt", slow("lstm on streams")])
def test_going_back_equals_a_run_that_never_saw_the_range(family, tokens_folder, tmp_path):
    architecture, more = (GPT, {}) if family == "gpt" else (LSTM, {"data__order": "stream"})
    # The spike at 11 leaves out 9 to 12; the newest checkpoint before that is of step 7, which was validated.
    config = configured(tmp_path / "back", tokens_folder, poison(11), architecture=architecture, **BACK | more)
    assert fit(config) == 0
    left_out_by_hand(tmp_path / "hand", tokens_folder, [[9, 12]], architecture, **more)
    assert figures(tmp_path / "back") == figures(tmp_path / "hand")
    for step in (12, 14):
        assert_equal(state(tmp_path / "back", step), state(tmp_path / "hand", step))
    assert [row["step"] for row in rows(tmp_path / "back") if row["train/skipped"]] == ["9", "10", "11", "12"]
    steps = [int(row["step"]) for row in rows(tmp_path / "back") if not row["val/loss"]]
    assert steps == [*range(1, 15)]
    assert [(line["step"], line["done"]) for line in journal(tmp_path / "back")] == [(11, "roll_back")]
    assert opened(tmp_path / "back", 14).record["skipped"] == [[9, 12]]


def test_a_cut_after_going_back_changes_nothing_though_no_checkpoint_knows_of_it_yet(tokens_folder, tmp_path):
    assert fit(configured(tmp_path / "whole", tokens_folder, poison(11), **BACK)) == 0
    with pytest.raises(PowerCut):
        fit(configured(tmp_path / "cut", tokens_folder, poison(11), cut(9, starts=2), **BACK))
    assert (tmp_path / "cut" / "run" / "checkpoints" / "last.ckpt").resolve().name == "step-00000007"
    assert fit(tmp_path / "cut" / "given.yaml", "--ckpt_path", "last", "--trainer.callbacks", "null") == 0
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    assert_equal(state(tmp_path / "cut", 14), state(tmp_path / "whole", 14))


@pytest.mark.slow
def test_a_cut_on_the_way_back_is_made_up_for_at_the_next_start(tokens_folder, tmp_path, monkeypatch):
    assert fit(configured(tmp_path / "whole", tokens_folder, poison(11), **BACK)) == 0
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(SpikeGuard, "point_back", lambda *_: (_ for _ in ()).throw(PowerCut))
        fit(configured(tmp_path / "cut", tokens_folder, poison(11), **BACK))
    assert (tmp_path / "cut" / "run" / "checkpoints" / "last.ckpt").resolve().name == "step-00000009"
    assert fit(tmp_path / "cut" / "given.yaml", "--ckpt_path", "last") == 0
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    assert_equal(state(tmp_path / "cut", 14), state(tmp_path / "whole", 14))


@pytest.mark.slow
def test_going_back_is_bounded_and_needs_a_checkpoint(tokens_folder, tmp_path):
    config = configured(tmp_path / "often", tokens_folder, poison(8, 13), **BACK | {"spikes__rollbacks": 1})
    with pytest.raises(SystemExit) as ended:
        fit(config)
    assert ended.value.code == SPIKE_STOPPED
    assert [(line["step"], line["done"]) for line in journal(tmp_path / "often")] == [(8, "roll_back"), (13, "stop")]
    with pytest.raises(SystemExit) as ended:
        fit(configured(tmp_path / "early", tokens_folder, poison(2), **BACK))
    assert ended.value.code == SPIKE_STOPPED
    assert "there is no checkpoint to go back to" in ends(tmp_path / "early" / "run")[0]["reason"]


# -- arithmetic


def test_limits_are_those_of_numpy_over_the_window():
    chance = random.Random(0)
    usual = Usual(Spikes(loss_deviations=4, norm_times=5, window=32, warmup_steps=10))
    losses, norms = [chance.gauss(3, 0.1) for _ in range(100)], [chance.expovariate(1) for _ in range(100)]
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
        limits = usual.limits(step)
        if step <= 10:
            assert not usual.strange(step, 1e9, 1e9)
            assert usual.strange(step, float("nan"), 1.0)
            assert usual.strange(step, 1.0, float("inf"))
        else:
            past = np.array(losses[max(0, step - 33) : step - 1])
            spread = 1.4826 * np.median(abs(past - np.median(past)))
            assert limits["loss"] == pytest.approx(np.median(past) + 4 * spread)
            assert limits["gradient norm"] == pytest.approx(5 * np.median(norms[max(0, step - 33) : step - 1]))
            assert [each["figure"] for each in usual.strange(step, limits["loss"] * 1.01, 0.0)] == ["loss"]
            assert not usual.strange(step, limits["loss"] * 0.99, limits["gradient norm"] * 0.99)
        usual.add(loss, norm)


def test_ranges_of_steps_are_a_set():
    chance = random.Random(1)
    for _ in range(200):
        pairs = [(first := chance.randint(1, 60), first + chance.randint(0, 9)) for _ in range(chance.randint(0, 9))]
        expected = {step for first, last in pairs for step in range(first, last + 1)}
        ranges = StepRanges(pairs)
        assert {step for step in range(80) if step in ranges} == expected
        assert {step for step in range(80) if step in ranges.up_to(30)} == {step for step in expected if step <= 30}
        assert StepRanges(ranges.as_lists()).ranges == ranges.ranges
        assert all(after[0] > before[1] + 1 for before, after in zip(ranges.ranges, ranges.ranges[1:], strict=False))


@pytest.mark.parametrize(
    ("option", "rule"),
    [("loss_deviations=0.5", "above 1"), ("window=0", "at least 1"), ("skip_steps=100", "more than spikes.back_steps")],
)
def test_settings_without_a_meaning_are_refused_with_a_sentence(option, rule, tokens_folder, tmp_path, capsys):
    assert fit(configured(tmp_path, tokens_folder), f"--spikes.{option}") == 2
    message = capsys.readouterr().err
    assert f"spikes.{option.split('=')[0]} is" in message
    assert rule in message
