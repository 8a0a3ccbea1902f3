"""Learning curves: training and validation loss against tokens, time or FLOPs, in nats, bits per byte or perplexity."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.reporting.figures.figure import POINTS, TIE, Choice, Figure, axis, colour, hovering, layout, line, scaled
from pipeline.reporting.quantities import digits, si, time_unit
from pipeline.reporting.runs import DIFFERENT_TEXT, Run, Series, of_one_text


@dataclass(frozen=True)
class Curve:
    """The loss of one run on one split, thinned to what a figure can show."""

    position: int
    run: Run
    split: str
    loss: Series

    @property
    def split_name(self) -> str:
        return "training" if self.split == "train" else "validation"


def learning_curves(runs: list[Run]) -> Figure | None:
    """Training and validation loss of every run against tokens, time or FLOPs (Kaplan et al. 2020 plot all three)."""
    curves = [
        Curve(position, run, split, loss)
        for position, run in enumerate(runs)
        for split in ("train", "val")
        if len(loss := run.series(f"{split}/loss").thinned(POINTS))
    ]
    if not curves:
        return None
    against = progress_choices(curves)
    traces = []
    for k, curve in enumerate(curves):
        validation = curve.split == "val"
        look: dict[str, Any] = {"width": 2.5} if validation else {"width": 1, "opacity": 0.55}
        if validation and len(curve.loss) <= 40:
            look |= {"mode": "lines+markers", "marker": {"color": colour(curve.position), "size": 6}}
        entry = {"showlegend": validation or not len(curve.run.series("val/loss")), "legendgroup": curve.run.name}
        trace = line(curve.position, curve.run.name, [], curve.loss.value, curve.split_name, **look, **entry)
        traces.append(trace | {key: values[k] for key, values in against[0].traces.items()})
    return Figure(
        name="curves",
        traces=traces,
        layout=layout(
            440,
            xaxis=axis(against[0].layout["xaxis.title.text"], exponentformat="B", rangemode="tozero"),
            yaxis=axis("Loss (nats per token)", exponentformat="none"),
        ),
        reading=read_curves(runs),
        choices={
            "Against": against,
            "Measure": measure_choices(curves),
            "Scale": [
                Choice("Linear", {}, {"xaxis.type": "linear", "xaxis.dtick": None, "xaxis.autorange": True}),
                # D2: a logarithmic axis names 1, 2 and 5 of each decade.
                Choice("Logarithmic", {}, {"xaxis.type": "log", "xaxis.dtick": "D2", "xaxis.autorange": True}),
            ],
        },
    )


def progress_choices(curves: list[Curve]) -> list[Choice]:
    """What the curves can be drawn against: whichever of tokens, time and FLOPs was logged, else steps."""
    unit, unit_seconds = time_unit(max(curve.run.last("seconds") or 0.0 for curve in curves))
    measured: dict[str, tuple[str, str, Callable[[Series], list[Any]]]] = {
        "Tokens": ("Trained tokens", "%{x:.3s} tokens", lambda loss: loss.tokens),
        "Time": (f"Training time ({unit})", f"%{{x:.3g}} {unit}", lambda loss: scaled(loss.seconds, 1 / unit_seconds)),
        "FLOPs": ("Training compute (FLOPs)", "%{x:.3s} FLOPs", lambda loss: loss.flops),
        "Steps": ("Optimiser steps", "%{x} steps", lambda loss: loss.step),
    }
    choices = []
    for name, (title, place, values) in measured.items():
        x = [values(curve.loss) for curve in curves]
        if any(value is not None for column in x for value in column):
            hover = [hovering(f"{curve.split_name}<br>%{{y:.4g}} at {place}") for curve in curves]
            choices.append(Choice(name, {"x": x, "hovertemplate": hover}, {"xaxis.title.text": title}))
    # Steps only stand in for the others: their size differs from run to run, so they compare poorly.
    return choices[:-1] or choices


def measure_choices(curves: list[Curve]) -> list[Choice]:
    """Loss, bits per byte and perplexity; a curve shows in a measure that was logged at the very points of its loss."""
    choices = []
    for name, metric, title, scale in (
        ("Nats per token", "loss", "Loss (nats per token)", "linear"),
        ("Bits per byte", "bits_per_byte", "Validation loss (bits per byte of text)", "linear"),
        ("Perplexity", "perplexity", "Perplexity (per token)", "log"),
    ):
        columns = [curve.run.series(f"{curve.split}/{metric}").thinned(POINTS) for curve in curves]
        shown = [column.step == curve.loss.step for column, curve in zip(columns, curves, strict=True)]
        if any(shown):
            y = [column.value if show else [] for column, show in zip(columns, shown, strict=True)]
            ticks = "D2" if scale == "log" else None
            words = {"yaxis.title.text": title, "yaxis.type": scale, "yaxis.dtick": ticks}
            choices.append(Choice(name, {"y": y, "visible": shown}, words))
    return choices


def read_curves(runs: list[Run]) -> str:
    """The comparison at the last number of tokens that all runs reached; for one run, how far it fell and falls."""

    def logged(metric: str) -> list[tuple[Run, Series]]:
        return [(run, run.series(metric)) for run in runs if len(run.series(metric))]

    curves, unit = logged("val/bits_per_byte"), "bits per byte"
    if not curves:
        curves, unit = logged("val/loss"), "nats per token"
    if not curves:
        return "No validation loss is logged yet; the training loss alone says little about new text."
    if len(curves) == 1:
        run, series = curves[0]
        if len(series) < 3:
            return f"{run.name} has only {len(series)} validations so far, too few to speak of a curve."
        lowest = min(range(len(series)), key=series.value.__getitem__)
        fall = f"{run.name} falls from {digits(series.value[0])} to {digits(series.value[lowest])} {unit} in validation"
        if series.value[-1] > (1 + TIE) * series.value[lowest]:
            return f"{fall}, then rises again to {digits(series.value[-1])}: from there on it learns its text by heart."
        return f"{fall}, and its last validation changed it by {signed(series.value[-1] - series.value[-2])}."
    if not of_one_text([run for run, _ in curves]):
        return DIFFERENT_TEXT
    shared = min(series.tokens[-1] or 0.0 for _, series in curves)
    reached = sorted((value, run.name) for run, series in curves if (value := at_tokens(series, shared)) is not None)
    if shared <= 0 or len(reached) < 2:
        return "The runs share no stretch of tokens yet, so their curves cannot be compared."
    (first, first_name), (second, second_name) = reached[:2]
    where = f"after {si(shared)} tokens"
    if any(series.tokens[-1] != shared for _, series in curves):
        where += ", the furthest that all runs reached"
    if second - first < TIE * first:
        return f"{first_name} and {second_name} are level at {digits(first)} {unit} {where}."
    ahead = f"{first_name} is ahead of {second_name} by {digits(second - first, 2)} {unit}"
    return f"{ahead} ({digits(first)} against {digits(second)}) {where}."


def at_tokens(series: Series, tokens: float) -> float | None:
    """The curve's value at a number of tokens, between its points on a straight line; None outside of it."""
    points = [(x, y) for x, y in zip(series.tokens, series.value, strict=True) if x is not None]
    for (left, left_value), (right, right_value) in pairwise(points):
        if left <= tokens <= right:
            share = (tokens - left) / (right - left) if right > left else 1.0
            return left_value + share * (right_value - left_value)
    return points[0][1] if points and points[0][0] == tokens else None


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + digits(value, 2)
