"""What a person sees of a stage that takes its time."""

import io

import pytest
from rich.console import Console

from data_prep import progress
from data_prep.progress import duration


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_units_rate_and_the_time_that_is_left_now_and_then(clock):
    """Four units of 50 MB, one of them there before: after 20 s two more, so 5 MB/s and 10 s for the last."""
    output = io.StringIO()
    with progress.progress(
        "filtered/web", [50_000_000] * 4, [50_000_000] * 3, Console(file=output, width=200)
    ) as shown:
        clock[0] += 1
        shown.add(50_000_000)
        clock[0] += 19
        shown.add(50_000_000)
    assert output.getvalue() == "filtered/web: 3 of 4 units, 150 of 200 MB, 5.0 MB/s, 10 s left\n"


def test_units_that_read_no_bytes_are_counted_alone(clock):
    output = io.StringIO()
    with progress.progress("x", [0, 0], [0, 0], Console(file=output, width=200)) as shown:
        clock[0] += 60
        shown.add(0)
    assert output.getvalue() == "x: 1 of 2 units\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600, "1 h 00 min"), (90061, "25 h 01 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text
