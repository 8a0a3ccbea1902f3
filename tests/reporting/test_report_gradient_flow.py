"""What the numbers of a gradient flow are said to mean."""

from math import log10

import pytest

from pipeline.reporting.figures.gradient import (
    EXPLODING,
    VANISHING,
    Curve,
    GradientFlow,
    decay_rate,
    gradient_flow,
    read_gradient_flow,
    share,
    verdict,
)
from pipeline.reporting.inspection_pages import flow_headline


def decaying(decades_a_step: float, distance: int = 20, drop: float = 0.0) -> Curve:
    return [0.0, *(drop + decades_a_step * k for k in range(1, distance + 1))]


def flow(run: str, untrained: float, trained: float, **options) -> GradientFlow:
    defaults = {"position": 0, "state": "h", "principal": True}
    return GradientFlow(run, **(defaults | options), untrained=decaying(untrained), trained=decaying(trained))


@pytest.mark.parametrize("rate", [0.5, 0.97, 1.0, 1.2])
def test_the_factor_of_a_geometric_curve_is_its_ratio_whatever_its_first_drop(rate: float) -> None:
    assert decay_rate(decaying(log10(rate), drop=-2.0)) == pytest.approx(rate)


def test_distances_without_a_gradient_do_not_count() -> None:
    assert decay_rate([0.0, -1.0, -2.0, None, -4.0]) == pytest.approx(0.1)
    assert decay_rate([0.0, -1.0, None, None]) is None
    assert verdict(None) == "cut off"


def test_the_verdict_turns_at_the_two_thresholds() -> None:
    rates = (VANISHING - 1e-9, VANISHING, 1.0, EXPLODING, EXPLODING + 1e-9)
    assert [verdict(rate) for rate in rates] == ["vanishing", "highway", "highway", "highway", "exploding"]


@pytest.mark.parametrize(
    ("log", "words"),
    [(0.0, "100 %"), (-1.0, "10 %"), (-3.0, "0.10 %"), (-8.0, "1.00 × 10⁻⁸"), (4.0, "1.00 × 10⁴"), (None, "nothing")],
)
def test_what_is_left_is_a_percentage_or_a_power(log: float | None, words: str) -> None:
    assert share(log).replace("\u202f", " ") == words


def test_the_reading_names_each_verdict_and_what_training_changed() -> None:
    flows = [flow("rnn", -0.3, -0.3), flow("lstm", -0.1, 0.0), flow("lstm", -0.2, -0.2, principal=False)]
    assert read_gradient_flow(flows) == (
        "Trained, the gradient vanishes in rnn (0.501 a step) and finds a highway in lstm (1.00 a step); "
        "before training, lstm was vanishing."
    )
    assert read_gradient_flow(flows[:1]).endswith("; the verdicts before training are the same.")


def test_the_headline_has_the_run_that_keeps_most_and_the_one_that_keeps_least() -> None:
    flows = [flow("rnn", -0.3, -0.3), flow("lstm", -0.1, -0.05), flow("gpt", 0.0, 0.0)]
    assert flow_headline(flows).replace("\u202f", " ") == (
        "20 steps back, 100 % of the gradient is left in gpt, 1.00 × 10⁻⁶ in rnn"
    )


def test_both_panels_share_their_axis_and_a_gap_stays_a_gap() -> None:
    cut = GradientFlow("gpt", 0, "residual stream", True, decaying(0.0), [1.0, 0.0, None])
    figure = gradient_flow([cut])
    assert figure.layout["yaxis2"]["matches"] == "y"
    assert [(trace["xaxis"], trace["yaxis"]) for trace in figure.traces] == [("x", "y"), ("x2", "y2")]
    assert figure.traces[1]["y"] == [1.0, 0.1, None]
    assert figure.choices["Scale"][1].traces["y"][1] == [10.0, 1.0, None]
