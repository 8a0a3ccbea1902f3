"""Gradient flow: what is left of a loss's gradient after so many steps back, before and after training."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.figures.figure import Choice, Figure, axis, colour, dash, hovering, label, layout, line
from pipeline.reporting.quantities import SPACE, and_list, digits, power

VANISHING, EXPLODING = 0.97, 1.03
"""Factors a step below which a gradient counts as vanishing and above which as exploding; between them lies a highway."""

Curve = list[float | None]
"""log10 of the gradient's norm by distance from the loss, from 0 on; None where there is no gradient at all."""


@dataclass(frozen=True)
class GradientFlow:
    """One kind of hidden state of one run."""

    run: str
    position: int
    """Place of the run among those shown, which gives it its colour."""
    state: str
    principal: bool
    """Whether this is the whole of the run's state, rather than a part of it."""
    untrained: Curve
    trained: Curve | None
    """None for fresh weights that stand beside the runs and belong to none."""

    @property
    def name(self) -> str:
        return self.run if self.principal else f"{self.run}, {self.state} alone"


def decay_rate(curve: Curve) -> float | None:
    """The factor by which the norm changes a step: of the straight line that fits its logarithm best (least squares).

    The step from distance 0 to 1 is left out: at 0 the loss also reads the state directly, without any step between them.
    None where fewer than two distances have a gradient.
    """
    points = [(k, value) for k, value in enumerate(curve) if k > 0 and value is not None]
    if len(points) < 2:
        return None
    mean_k = sum(k for k, _ in points) / len(points)
    mean_value = sum(value for _, value in points) / len(points)
    covariance = sum((k - mean_k) * (value - mean_value) for k, value in points)
    return 10 ** (covariance / sum((k - mean_k) ** 2 for k, _ in points))


def verdict(rate: float | None) -> str:
    if rate is None:
        return "cut off"
    return "vanishing" if rate < VANISHING else "exploding" if rate > EXPLODING else "highway"


def left(curve: Curve) -> float | None:
    """log10 of the norm at the largest distance relative to that at 0; None where no gradient comes so far."""
    first, last = curve[0], curve[-1]
    return None if first is None or last is None else last - first


def share(log: float | None) -> str:
    """What is left of a norm, given as its log10, in the form that its size asks for."""
    if log is None or log < -300:
        return "nothing"
    return digits(100 * 10**log, 2) + SPACE + "%" if -4 < log < 1 else power(10**log)


def gradient_flow(flows: list[GradientFlow]) -> Figure:
    """Norms against distance, untrained and trained in two panels with one axis, relative to distance 0 or as measured."""
    traces, relative, absolute = [], [], []
    for panel, title in (("", "untrained"), ("2", "trained")):
        for flow in flows:
            curve = getattr(flow, title)
            if curve is None:
                continue
            look = {"color": colour(flow.position), "width": 2.5 if flow.principal else 1.5}
            look["dash"] = dash(flow.position) if flow.principal else "dot"
            entry = {"showlegend": not panel, "legendgroup": flow.name}
            relative.append([None if value is None else 10 ** (value - (curve[0] or 0)) for value in curve])
            absolute.append([None if value is None else 10**value for value in curve])
            traces.append(
                line(flow.position, flow.name, list(range(len(curve))), relative[-1], line=look, **entry)
                | {"xaxis": f"x{panel}", "yaxis": f"y{panel}"}
                | {"hovertemplate": hovering(f"{title}<br>%{{y:.2e}} at %{{x}} steps back")}
            )
    steps = "Steps back from the loss"
    titles = ("Gradient norm relative to distance 0", "Gradient norm")
    logs = [math.log10(value) for y in relative for value in y if value]
    # Whole decades only, and not more of them than can be read.
    decades = max(1, math.ceil((max(logs) - min(logs)) / 8)) if logs else 1
    scale: dict[str, Any] = {"type": "log", "exponentformat": "power", "dtick": decades}
    return Figure(
        name="gradient-flow",
        traces=traces,
        layout=layout(
            440,
            margin={"l": 64, "r": 16, "t": 62, "b": 48},
            legend={"orientation": "h", "x": 0, "y": 1.08, "yanchor": "bottom", "yref": "paper"},
            xaxis=axis(steps, domain=[0, 0.48], rangemode="tozero"),
            xaxis2=axis(steps, domain=[0.52, 1], rangemode="tozero", anchor="y2"),
            yaxis=axis(titles[0], **scale),
            yaxis2=axis("", **scale, matches="y", anchor="x2", showticklabels=False),
            annotations=[heading("Untrained", "x", "y"), heading("Trained", "x2", "y2")],
        ),
        reading=read_gradient_flow(flows),
        choices={
            "Scale": [
                Choice(name, {"y": y}, {"yaxis.title.text": title, "yaxis.autorange": True})
                for name, y, title in (("Relative", relative, titles[0]), ("As measured", absolute, titles[1]))
            ]
        },
        narrow={
            "height": 760,
            "xaxis": {"domain": [0, 1], "title": {"text": ""}},
            "xaxis2": {"domain": [0, 1]},
            "yaxis": {"domain": [0.56, 1]},
            "yaxis2": {"domain": [0, 0.44], "showticklabels": True},
        },
    )


def heading(text: str, x: str, y: str) -> dict[str, Any]:
    """A panel's title above its left corner."""
    place = {"xref": f"{x} domain", "yref": f"{y} domain", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
    return {"text": f"<b>{label(text)}</b>", "showarrow": False, **place}


def read_gradient_flow(flows: list[GradientFlow]) -> str:
    """Who loses the gradient, who keeps it, and what training changed about it."""
    whole = [(flow.run, flow.untrained, flow.trained) for flow in flows if flow.principal and flow.trained is not None]
    parts = []
    for judged, words in (
        ("vanishing", "vanishes in"),
        ("exploding", "explodes in"),
        ("highway", "finds a highway in"),
        ("cut off", "is cut off in"),
    ):
        rates = [(run, rate) for run, _, trained in whole if verdict(rate := decay_rate(trained)) == judged]
        named = [f"{run} ({digits(rate)} a step)" if rate is not None else run for run, rate in rates]
        if named:
            parts.append(f"{words} {and_list(named)}")
    before = [(run, verdict(decay_rate(untrained)), verdict(decay_rate(trained))) for run, untrained, trained in whole]
    changed = [f"{run} was {first}" for run, first, last in before if first != last]
    untrained = f"before training, {and_list(changed)}" if changed else "the verdicts before training are the same"
    return f"Trained, the gradient {and_list(parts)}; {untrained}."


def rows(flows: list[GradientFlow]) -> list[list[str]]:
    """The table of the page and of the terminal: factor a step, verdict and what is left, before and after training."""
    table = []
    for flow in flows:
        cells = [flow.state]
        for curve in (flow.untrained, flow.trained):
            if curve is None:
                cells += ["–"] * 3
                continue
            rate = decay_rate(curve)
            cells += [digits(rate), verdict(rate), share(left(curve))]
        table.append(cells)
    return table


def columns(distance: int) -> list[str]:
    of_one = ["a step", "verdict", f"left after {distance}"]
    return ["State", *(f"Untrained, {name}" for name in of_one), *(f"Trained, {name}" for name in of_one)]
