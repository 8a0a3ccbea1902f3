"""Loss by position in the context: how much a model gains from what it has read so far."""

import math
from statistics import fmean

from pipeline.reporting.figures.figure import TIE, Figure, axis, layout, line
from pipeline.reporting.quantities import digits
from pipeline.reporting.records import number
from pipeline.reporting.runs import DIFFERENT_TEXT, Run, of_one_text


def context_loss(runs: list[Run]) -> Figure | None:
    """Loss by position in the context, where recurrence and attention part (Kaplan et al. 2020, Figure 7)."""
    traces, curves = [], measured(runs)
    for run, raw in curves:
        position, bins = runs.index(run), log_bins(raw)
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


def measured(runs: list[Run]) -> list[tuple[Run, list[float | None]]]:
    """The runs whose validation.json has the losses by position, with them."""
    found = [(run, run.validation.get("loss_by_position")) for run in runs]
    return [
        (run, [number(loss) for loss in losses])
        for run, losses in found
        if isinstance(losses, list) and len(losses) > 1
    ]


def early_and_late(curves: list[tuple[Run, list[float | None]]]) -> list[tuple[Run, float, float]]:
    """Mean losses in the first sixteenth and in the last quarter of the context."""
    ends = []
    for run, raw in curves:
        early = [loss for loss in raw[: max(1, len(raw) // 16)] if loss is not None]
        late = [loss for loss in raw[-max(1, len(raw) // 4) :] if loss is not None]
        if early and late:
            ends.append((run, fmean(early), fmean(late)))
    return ends


def read_context(curves: list[tuple[Run, list[float | None]]]) -> str:
    """The gap between two runs early and late in the context; for one run, what the context gains it."""
    ends = early_and_late(curves)
    if not ends:
        return "The losses by position hold no numbers."
    if len(ends) == 1:
        run, early, late = ends[0]
        if early - late < TIE * early:
            return f"{run.name} predicts the end of its context no better than the start."
        gain = f"{digits(early - late, 2)} nats per token"
        return f"{run.name} gains {gain} between the first sixteenth and the last quarter of its context."
    if not of_one_text([run for run, _, _ in ends]):
        return DIFFERENT_TEXT
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
