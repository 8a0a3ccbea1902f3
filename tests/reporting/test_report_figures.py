"""The sentences under the figures say what the numbers say, ties and gaps included."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.reporting.figures.context import log_bins, read_context
from pipeline.reporting.figures.curves import at_tokens, read_curves
from pipeline.reporting.figures.figure import COLOURS
from pipeline.reporting.figures.optimisation import read_optimisation
from pipeline.reporting.figures.throughput import read_throughput
from pipeline.reporting.quantities import digits, duration, percent, power, si
from pipeline.reporting.runs import Run, Series


def series(tokens: Sequence[float], value: Sequence[float]) -> Series:
    return Series(step=list(tokens), tokens=[*tokens], seconds=[*tokens], flops=[*tokens], value=[*value])


def run(name: str, **columns: tuple[Sequence[float], Sequence[float]]) -> Run:
    """A run with columns given as val_loss=(tokens, values)."""
    metrics = {column.replace("_", "/", 1): series(*points) for column, points in columns.items()}
    return Run(Path(name), name, {}, metrics)


def test_curves_are_compared_at_the_last_tokens_that_both_reached() -> None:
    long = run("long", val_bits_per_byte=([1e6, 2e6, 4e6], [3.0, 2.0, 1.0]))
    short = run("short", val_bits_per_byte=([1e6, 3e6], [3.0, 1.75]))
    # At 3M tokens, half-way between its points at 2M and 4M, the long run stands at 1.5.
    sentence = read_curves([long, short])
    assert sentence.startswith(
        "long is ahead of short by 0.25 bits per byte (1.50 against 1.75) after 3.00\u202fM tokens"
    )


def test_curves_within_half_a_percent_are_called_level() -> None:
    first, second = run("a", val_loss=([1, 2], [4.0, 3.0])), run("b", val_loss=([1, 2], [4.0, 3.01]))
    assert read_curves([first, second]).startswith("a and b are level at 3.00 nats per token")


def test_curves_with_too_little_data_say_so() -> None:
    assert "too few" in read_curves([run("a", val_loss=([1], [4.0]))])
    assert "No validation loss" in read_curves([run("a", train_loss=([1], [4.0]))])


def test_a_single_run_that_rises_again_is_said_to_overfit() -> None:
    assert "then rises again to 3.50" in read_curves([run("a", val_loss=([1, 2, 3], [4.0, 3.0, 3.5]))])


def test_between_points_a_curve_is_a_straight_line_and_outside_it_is_nothing() -> None:
    curve = series([10, 20, 40], [4.0, 3.0, 1.0])
    assert [at_tokens(curve, tokens) for tokens in (10, 15, 30, 40)] == [4.0, 3.5, 2.0, 1.0]
    assert at_tokens(curve, 41) is None


def test_position_bins_are_single_at_first_and_cover_every_position_once() -> None:
    values: list[float | None] = [float(k) for k in range(1, 1025)]
    bins = log_bins(values)
    assert bins[:3] == [(1, 1), (2, 2), (3, 3)]
    assert len(bins) < 40
    # A constant loss stays constant, and so a mean over a stretch weighs no position twice.
    assert all(loss == 2.5 for _, loss in log_bins([2.5] * 1000))
    assert log_bins([None, None, 1.0]) == [(3, 1.0)]


def test_context_reading_tells_early_from_late() -> None:
    late_better: list[float | None] = [5.0 if k < 16 else 4.0 for k in range(256)]
    flat: list[float | None] = [5.0 if k < 16 else 4.5 for k in range(256)]
    sentence = read_context([(run("gpt"), late_better), (run("lstm"), flat)])
    assert sentence == (
        "Against lstm, gpt is level in the first sixteenth of the context and 0.50 nats ahead in the last quarter."
    )
    assert "are level in the last quarter" in read_context([(run("a"), flat), (run("b"), flat)])
    assert "gains 1.0 nats per token" in read_context([(run("gpt"), late_better)])


def test_clipping_is_counted_from_the_norms() -> None:
    norms: dict[str, tuple[list[float], list[float]]] = {
        "train_grad_norm": ([1, 2, 3, 4], [3.0, 0.5, 0.4, 0.3]),
        "train_grad_norm_clipped": ([1, 2, 3, 4], [1.0, 0.5, 0.4, 0.3]),
    }
    assert (
        read_optimisation([run("a", **norms)])
        == "a was clipped in 25.0\u202f% of the logged steps, all in the first half."
    )


def test_throughput_reading_gives_the_medians() -> None:
    speeds: dict[str, tuple[list[float], list[float]]] = {
        "train_tokens_per_second": ([1, 2, 3], [100.0, 9e3, 1.1e4]),
        "train_mfu": ([1, 2, 3], [0.1, 0.25, 0.3]),
    }
    assert "median of 9.00\u202fk tokens/s, 25.0\u202f% of" in read_throughput([run("a", **speeds)])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (si(940), "940"),
        (si(13_240), "13.2 k"),
        (si(999_999), "1.00 M"),
        (si(3_100_000_000), "3.10 B"),
        (si(None), "–"),
        (digits(0.01234), "0.0123"),
        (digits(-2.5), "−2.50"),
        (digits(1234.5), "1 234"),
        (power(1.04e14), "1.04 × 10¹⁴"),
        (percent(0.2587), "25.9 %"),
        (duration(7.34), "7.3 s"),
        (duration(242), "4 min 02 s"),
        (duration(12_000), "3 h 20 min"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown.replace("\u202f", " ") == expected


def contrast(colour: str, ground: str) -> float:
    """WCAG 2.2 contrast ratio of two sRGB colours."""

    def luminance(text: str) -> float:
        channels = [int(text[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(colour), luminance(ground)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
def test_run_colours_stand_out_on_the_light_and_the_dark_page(colour: str) -> None:
    assert contrast(colour, "#ffffff") >= 3
    assert contrast(colour, "#14171a") >= 3
