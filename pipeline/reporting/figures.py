"""The report's figures, each a Plotly figure as plain data with a sentence that reads it.

Plain dicts, since the browser draws them: Plotly's Python classes would add a second to the start and a template to the
page. Text and rules take their colour from the page's style sheet, so that a figure reads in light, dark and print.
"""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from pipeline.reporting.quantities import SPACE, digits, percent, si, time_unit
from pipeline.reporting.runs import Run, Series, number

COLOURS = ("#2a7fd4", "#d9681d", "#1f9d78", "#b565a7", "#a5822a", "#6d7f91")
"""One for each run in every figure: told apart in the common colour blindnesses, and over 3:1 on white and on black."""

GREY = "#868c94"
POINTS = 800
"""The most points of one curve: more than the figure has pixels would only make the page heavy."""

TIE = 0.005
"""Losses closer than this share of themselves are called level: another seed would move them as far."""


@dataclass(frozen=True)
class Choice:
    """One button of a figure: the values that it gives to the traces and to the layout, as Plotly.update takes them."""

    label: str
    traces: dict[str, Any]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its Plotly data, groups of buttons (the first of a group is on), and what it shows."""

    name: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    reading: str
    choices: dict[str, list[Choice]] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        return {
            "data": self.traces,
            "layout": self.layout,
            "choices": {
                group: [{"data": choice.traces, "layout": choice.layout} for choice in choices]
                for group, choices in self.choices.items()
            },
        }


def colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def dash(position: int) -> str:
    """Solid for the first runs; when the colours come round again, another dash tells the runs apart."""
    return ("solid", "dash", "dot", "dashdot")[position // len(COLOURS) % 4]


def label(text: str) -> str:
    """Text for a figure, where Plotly would otherwise take tags as markup."""
    return html.escape(text, quote=False)


def hovering(text: str) -> str:
    # The empty "extra" drops Plotly's second box with the name, which has no ground of its own in dark mode.
    return f"%{{fullData.name}}, {text}<extra></extra>"


def line(
    position: int, name: str, x: list[Any], y: list[Any], hover: str = "", width: float = 2, **options: Any
) -> dict[str, Any]:
    """A run's curve in the run's own colour and dash; `hover` is what pointing at it tells, after the run's name."""
    trace_hover = {"hovertemplate": hovering(hover)} if hover else {"hoverinfo": "skip"}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(name),
        "x": x,
        "y": y,
        "line": {"color": colour(position), "width": width, "dash": dash(position)},
        **trace_hover,
        **options,
    }


ONE_TWO_FIVE = [digit * 10.0**decade for decade in range(-6, 7) for digit in (1, 2, 5)]
"""Ticks of a logarithmic axis that are written out; plotly's own leave the decade away between its powers."""


def axis(title: str, **options: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 10},
        "automargin": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(134,140,148,0.5)",
        "gridcolor": "rgba(134,140,148,0.2)",
        **options,
    }


def layout(height: int, **options: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": GREY},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "yref": "paper"},
        "hoverlabel": {"bgcolor": "#20252b", "font": {"color": "#f4f5f6"}, "align": "left"},
        "hovermode": "closest",
        "separators": f".{SPACE}",
        **options,
    }


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


def context_loss(runs: list[Run]) -> Figure | None:
    """Loss by position in the context, where recurrence and attention part (Kaplan et al. 2020, Figure 7)."""
    traces, curves = [], []
    for position, run in enumerate(runs):
        losses = run.validation.get("loss_by_position")
        if not isinstance(losses, list) or len(losses) < 2:
            continue
        raw = [number(loss) for loss in losses]
        bins = log_bins(raw)
        curves.append((run, raw))
        places = list(range(1, len(raw) + 1))
        traces.append(line(position, run.name, places, raw, width=1, opacity=0.4, showlegend=False))
        middles, means = [x for x, _ in bins], [y for _, y in bins]
        traces.append(line(position, run.name, middles, means, "position %{x}<br>%{y:.3f} nats", width=2.5))
    if not traces:
        return None
    longest = max(len(raw) for _, raw in curves)
    ticks = [2**k for k in range(longest.bit_length())]
    return Figure(
        name="context",
        traces=traces,
        layout=layout(
            400,
            xaxis=axis("Position in the context (tokens seen, logarithmic)", type="log", tickvals=ticks),
            yaxis=axis("Validation loss (nats per token)"),
        ),
        reading=read_context(curves),
    )


def read_context(curves: list[tuple[Run, list[float | None]]]) -> str:
    """The gap between two runs early and late in the context; for one run, what the context gains it."""
    ends = []
    for run, raw in curves:
        early = [loss for loss in raw[: max(1, len(raw) // 16)] if loss is not None]
        late = [loss for loss in raw[-max(1, len(raw) // 4) :] if loss is not None]
        if early and late:
            ends.append((run, fmean(early), fmean(late)))
    if not ends:
        return "The losses by position hold no numbers."
    if len(ends) == 1:
        run, early, late = ends[0]
        if early - late < TIE * early:
            return f"{run.name} predicts the end of its context no better than the start."
        gain = f"{digits(early - late, 2)} nats per token"
        return f"{run.name} gains {gain} between the first sixteenth and the last quarter of its context."
    (first, first_early, first_late), (second, second_early, second_late) = sorted(ends, key=lambda end: end[2])[:2]
    late_gap, early_gap = second_late - first_late, second_early - first_early
    if late_gap < TIE * first_late:
        return (
            f"{first.name} and {second.name} are level in the last quarter of the context ({digits(first_late)} nats)."
        )
    early_words = f"is {digits(abs(early_gap), 2)} nats {'ahead' if early_gap > 0 else 'behind'}"
    if abs(early_gap) < TIE * first_early:
        early_words = "is level"
    return (
        f"Against {second.name}, {first.name} {early_words} in the first sixteenth of the context and "
        f"{digits(late_gap, 2)} nats ahead in the last quarter."
    )


def log_bins(values: list[float | None], per_octave: int = 4) -> list[tuple[float, float]]:
    """Means over stretches of positions of equal ratio, each at the geometric middle of its first and last position.

    Early positions stay single; late ones, of which there are many and whose losses are noisy, are averaged.
    """
    bins, start = [], 1
    while start <= len(values):
        end = max(start, math.ceil(start * 2 ** (1 / per_octave)) - 1)
        found = [value for value in values[start - 1 : end] if value is not None]
        if found:
            bins.append((round(math.sqrt(start * min(end, len(values))), 2), fmean(found)))
        start = end + 1
    return bins


@dataclass(frozen=True)
class ScoreRow:
    """One score of every run: a row of the table of scores. `share` says whether it is a share of right answers."""

    task: str
    shots: int
    metric: str
    n: int | None
    chance: float | None
    share: bool
    higher_is_better: bool
    cells: dict[str, tuple[float, float | None]]
    """By run's name: the score and its standard error."""

    def above_chance(self, name: str) -> bool:
        """Whether the score is more than two standard errors above chance."""
        score, stderr = self.cells.get(name, (0.0, None))
        return self.share and self.chance is not None and stderr is not None and score - self.chance > 2 * stderr


def score_rows(runs: list[Run]) -> list[ScoreRow]:
    """The scores of all runs by task, metric and shots, in the order in which the evaluations name them."""
    found: dict[tuple[str, str, int], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for score in run.scores:
            key = (str(score["task"]), str(score.get("metric", "")), int(number(score.get("shots")) or 0))
            found.setdefault(key, []).append((run, score))
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    rows = []
    for task, metric, shots in sorted(found, key=lambda key: (tasks.index(key[0]), key[1], key[2])):
        entries = found[task, metric, shots]
        higher = all(score.get("higher_is_better", True) for _, score in entries)
        counts = [count for _, score in entries if (count := number(score.get("n"))) is not None]
        rows.append(
            ScoreRow(
                task=task,
                shots=shots,
                metric=metric,
                n=int(max(counts)) if counts else None,
                chance=number(entries[0][1].get("chance")),
                share=higher and all(0 <= score["score"] <= 1 for _, score in entries),
                higher_is_better=higher,
                cells={run.name: (score["score"], number(score.get("stderr"))) for run, score in entries},
            )
        )
    return rows


def few_shot(runs: list[Run]) -> Figure | None:
    """Shares of right answers by task and shots, with standard errors and the chance level."""
    rows = [row for row in score_rows(runs) if row.share]
    if not rows:
        return None
    names = list(dict.fromkeys((row.task, row.metric) for row in rows))
    shots = sorted({row.shots for row in rows})
    scored = [(position, run) for position, run in enumerate(runs) if any(run.name in row.cells for row in rows)]
    places = {name: len(names) - k for k, name in enumerate(names)}
    series = [(position, run, count) for position, run in scored for count in shots]
    traces = []
    for k, (position, run, count) in enumerate(series):
        marks = [row for row in rows if row.shots == count and run.name in row.cells]
        # The marks of one task stand one above the other, in the order of the legend.
        step = 0.62 / max(1, len(series) - 1)
        heights = [places[row.task, row.metric] + 0.31 - k * step for row in marks]
        cells = [row.cells[run.name] for row in marks]
        errors = [100 * stderr if stderr is not None else 0 for _, stderr in cells]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(f"{run.name}, {count}-shot"),
                "x": [100 * score for score, _ in cells],
                "y": heights,
                "error_x": {"type": "data", "array": errors, "thickness": 1.5, "width": 0, "color": colour(position)},
                "marker": {
                    "color": colour(position),
                    "size": 9,
                    "symbol": ("circle-open", "circle", "diamond", "square", "triangle-up")[shots.index(count) % 5],
                    "line": {"width": 2, "color": colour(position)},
                },
                "text": [
                    f"{label(row.task)}, {label(row.metric)}<br>{percent(score)}"
                    + (f" ± {percent(stderr)}" if stderr is not None else "")
                    + (f"<br>chance {percent(row.chance)}" if row.chance is not None else "")
                    for row, (score, stderr) in zip(marks, cells, strict=True)
                ],
                "hovertemplate": hovering("%{text}"),
            }
        )
    chance = {(row.task, row.metric): row.chance for row in rows if row.chance is not None}
    if chance:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "chance",
                "x": [x for level in chance.values() for x in (100 * level, 100 * level, None)],
                "y": [y for name in chance for y in (places[name] - 0.42, places[name] + 0.42, None)],
                "line": {"color": GREY, "width": 2, "dash": "dot"},
                "hoverinfo": "skip",
            }
        )
    highest = max(100 * (score + (stderr or 0)) for row in rows for score, stderr in row.cells.values())
    highest = max(highest, *(100 * level for level in chance.values()), 1.0)
    several = {task for task, metric in names if sum(task == other for other, _ in names) > 1}
    ticks = [label(f"{task} ({metric})" if task in several else task) for task, metric in names]
    return Figure(
        name="scores",
        traces=traces,
        layout=layout(
            130 + len(names) * max(34, 12 * len(series)),
            xaxis=axis("Right answers (%)", range=[-0.02 * highest, 1.06 * highest]),
            yaxis=axis(
                "",
                tickvals=[places[name] for name in names],
                ticktext=ticks,
                range=[0.45, len(names) + 0.55],
                showgrid=False,
                ticks="",
            ),
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": edge + 0.5,
                    "y1": edge + 0.5,
                    "line": {"color": "rgba(134,140,148,0.25)", "width": 1},
                }
                for edge in range(1, len(names))
            ],
        ),
        reading=read_scores([run for _, run in scored], rows),
    )


def read_scores(runs: list[Run], rows: list[ScoreRow]) -> str:
    """How many scores stand out from chance, and from the other run's, by more than two standard errors."""
    parts = []
    for run in runs:
        own = [row for row in rows if row.chance is not None and run.name in row.cells]
        if own:
            above = sum(row.above_chance(run.name) for row in own)
            words = "is more than two standard errors above chance" if not parts else "is so"
            parts.append(f"{run.name} {words} in {above or 'none'} of {len(own)} scores")
    if len(runs) == 2:
        first, second = runs
        shared = [(row.cells[first.name], row.cells[second.name]) for row in rows if len(row.cells) == 2]
        apart = [a > b for (a, e), (b, f) in shared if abs(a - b) > 2 * math.hypot(e or 0, f or 0)]
        leads = [(first, second, sum(apart)), (second, first, len(apart) - sum(apart))]
        for winner, loser, count in leads:
            if count:
                parts.append(
                    f"{winner.name} leads {loser.name} by more than two standard errors in {count} of {len(shared)}"
                )
        if shared and not apart:
            parts.append("the two runs differ by more than two standard errors in none")
    return "; ".join(parts) + "." if parts else "The scores state no chance level to be compared with."


def throughput(runs: list[Run]) -> Figure | None:
    """Tokens per second and MFU (the share of the machine's measured matmul peak) over the run's time."""
    unit, unit_seconds = time_unit(max((run.last("seconds") or 0.0 for run in runs), default=None))
    traces = []
    for position, run in enumerate(runs):
        for column, y_axis, scale, shown in (
            ("train/tokens_per_second", "y", 1.0, ":.3s} tokens/s"),
            ("train/mfu", "y2", 100.0, ":.3g} %"),
        ):
            series = run.series(column).thinned(POINTS)
            if not len(series):
                continue
            x = scaled(series.seconds, 1 / unit_seconds)
            y = [value * scale for value in series.value]
            panel = {"yaxis": y_axis, "legendgroup": run.name}
            traces.append(line(position, run.name, x, y, width=1, opacity=0.4, showlegend=False, **panel))
            hover = f"%{{x:.3g}} {unit}<br>%{{y{shown}"
            entry = {"showlegend": y_axis == "y"}
            traces.append(line(position, run.name, x, running_median(y), hover, width=2.5, **entry, **panel))
    if not traces:
        return None
    return Figure(
        name="throughput",
        traces=traces,
        layout=layout(
            500,
            xaxis=axis(f"Training time ({unit})", anchor="y2", rangemode="tozero"),
            yaxis=axis("Tokens per second", domain=[0.55, 1], rangemode="tozero", exponentformat="B"),
            yaxis2=axis("MFU (%)", domain=[0, 0.45], rangemode="tozero"),
        ),
        reading=read_throughput(runs),
    )


def read_throughput(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        if (speed := run.median("train/tokens_per_second")) is None:
            continue
        words = f"{run.name} trains at a median of {si(speed)} tokens/s" if not parts else f"{run.name} at {si(speed)}"
        if (mfu := run.median("train/mfu")) is not None:
            words += f", {percent(mfu)}" + ("" if parts else " of the machine's matmul peak")
        parts.append(words)
    return "; ".join(parts) + "." if parts else "The speed is not logged yet."


def optimisation(runs: list[Run]) -> Figure | None:
    """Learning rate, and the gradient's global norm before and after clipping."""
    traces = []
    for position, run in enumerate(runs):
        entry = True
        for column, y_axis, words, style in (
            ("train/learning_rate", "y", "learning rate", {"width": 2}),
            ("train/grad_norm_clipped", "y2", "after clipping", {"width": 2}),
            ("train/grad_norm", "y2", "before clipping", {"width": 1, "opacity": 0.55}),
        ):
            series = run.series(column).thinned(POINTS)
            if len(series):
                style |= {"yaxis": y_axis, "legendgroup": run.name, "showlegend": entry}
                hover = f"{words}<br>%{{y:.3g}} at %{{x:.3s}} tokens"
                traces.append(line(position, run.name, series.tokens, series.value, hover, **style))
                entry = False
    if not traces:
        return None
    return Figure(
        name="optimisation",
        traces=traces,
        layout=layout(
            540,
            xaxis=axis("Trained tokens", anchor="y2", exponentformat="B", rangemode="tozero"),
            yaxis=axis("Learning rate", domain=[0.6, 1], rangemode="tozero", exponentformat="power"),
            yaxis2=axis("Gradient norm (logarithmic)", domain=[0, 0.5], type="log", tickvals=ONE_TWO_FIVE),
        ),
        reading=read_optimisation(runs),
    )


def read_optimisation(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        before, after = run.series("train/grad_norm"), run.series("train/grad_norm_clipped")
        if not len(before) or before.step != after.step:
            continue
        clipped = [a < 0.999 * b for a, b in zip(after.value, before.value, strict=True)]
        share = sum(clipped) / len(clipped)
        words = (
            f"{run.name} was clipped in {percent(share)} of the logged steps"
            if share
            else f"{run.name} never was clipped"
        )
        half = clipped[len(clipped) // 2 :]
        if 0 < share < 0.5 and not any(half):
            words += ", all in the first half"
        parts.append(words)
    schedules = [(rates.tokens, rates.value) for run in runs if len(rates := run.series("train/learning_rate"))]
    if len(schedules) > 1 and all(schedule == schedules[0] for schedule in schedules):
        parts.append("all follow one schedule of the learning rate")
    return "; ".join(parts) + "." if parts else "The gradient norms are not logged yet."


def scaled(values: list[float | None], factor: float) -> list[float | None]:
    return [None if value is None else value * factor for value in values]


def at_tokens(series: Series, tokens: float) -> float | None:
    """The curve's value at a number of tokens, between its points on a straight line; None outside of it."""
    points = [(x, y) for x, y in zip(series.tokens, series.value, strict=True) if x is not None]
    for (left, left_value), (right, right_value) in pairwise(points):
        if left <= tokens <= right:
            share = (tokens - left) / (right - left) if right > left else 1.0
            return left_value + share * (right_value - left_value)
    return points[0][1] if points and points[0][0] == tokens else None


def running_median(values: list[float]) -> list[float]:
    """Each value as the median of its neighbourhood, a twentieth of the run wide: one slow step leaves no dent."""
    reach = max(1, len(values) // 40)
    return [median(values[max(0, k - reach) : k + reach + 1]) for k in range(len(values))]


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + digits(value, 2)
