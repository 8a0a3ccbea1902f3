"""Reading metrics and samples: resumed, torn and diverged logs."""

import json
from pathlib import Path

import pytest

from pipeline.reporting.runs import Series, find_runs, read_metrics, read_samples

HEADER = "step,tokens,seconds,flops,train/loss,val/loss\n"


def test_columns_are_read_apart_since_a_row_holds_only_some() -> None:
    metrics = read_metrics(HEADER + "1,10,0.5,100,8.3,\n2,20,1.0,200,8.1,\n2,20,1.1,200,,8.2\n")
    assert metrics["train/loss"].value == [8.3, 8.1]
    assert (metrics["val/loss"].tokens, metrics["val/loss"].value) == ([20], [8.2])


def test_a_last_line_without_its_end_is_dropped() -> None:
    assert read_metrics(HEADER + "1,10,0.5,100,8.3,\n2,20,1.0,200,8.")["train/loss"].value == [8.3]
    assert read_metrics(HEADER + "1,10,0.5,100,8.3,\n2,2")["train/loss"].value == [8.3]
    assert read_metrics(HEADER.strip()) == {}


def test_a_resume_replaces_what_the_lost_run_had_logged_past_it() -> None:
    rows = ["1,10,1,1,8.0,", "2,20,2,2,7.0,", "3,30,3,3,6.0,", "4,40,4,4,5.0,", "3,30,3,3,6.5,", "5,50,5,5,4.5,"]
    series = read_metrics(HEADER + "\n".join(rows) + "\n")["train/loss"]
    assert (series.step, series.value) == ([1, 2, 3, 5], [8.0, 7.0, 6.5, 4.5])


def test_values_that_are_not_finite_are_counted_and_left_out() -> None:
    series = read_metrics(HEADER + "1,10,1,1,8.0,\n2,20,2,2,nan,\n3,30,3,3,inf,\n4,40,4,4,what,\n5,,,,7.0,\n")[
        "train/loss"
    ]
    assert (series.value, series.not_finite) == ([8.0, 7.0], 3)
    assert series.tokens == [10, None]


def test_thinning_keeps_the_mean_and_the_last_place() -> None:
    steps = [float(k) for k in range(1, 1001)]
    series = Series(steps, [*steps], [*steps], [*steps], [k % 7 for k in steps])
    thinned = series.thinned(100)
    assert len(thinned) == 100
    assert thinned.tokens[-1] == 1000
    assert sum(thinned.value) / 100 == pytest.approx(sum(series.value) / 1000)
    assert series.thinned(1000) is series


def test_samples_come_newest_first_and_torn_lines_are_counted() -> None:
    lines = [json.dumps({"prompt": str(k), "completions": ["a\u2028b"]}, ensure_ascii=False) for k in range(3)]
    samples, broken = read_samples("\n".join([*lines, '{"prompt": "torn']))
    assert [sample["prompt"] for sample in samples] == ["2", "1", "0"]
    assert broken == 1


def test_runs_are_found_at_any_depth_and_named_by_their_path(make_run) -> None:
    first = make_run("gpt", steps=50)
    make_run("seeds/one", steps=50)
    runs, _ = find_runs(first.parent)
    assert [run.name for run in runs] == ["gpt", "seeds/one"]
    assert [run.name for run in find_runs(first)[0]] == ["gpt"]


def test_the_checkpoint_is_the_one_that_was_judged(make_run) -> None:
    run: Path = make_run("gpt", steps=50)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"last")
    validation = json.loads((run / "validation.json").read_text())
    (run / "validation.json").write_text(json.dumps(validation | {"checkpoint": "runs/gpt/checkpoints/last.ckpt"}))
    judged = find_runs(run)[0][0].checkpoint_file()
    assert judged == run / "checkpoints" / "last.ckpt"
