"""Learning rate and gradient norms: whether the optimiser was steered calmly."""

from pipeline.reporting.figures.figure import POINTS, Figure, axis, layout, line
from pipeline.reporting.quantities import percent
from pipeline.reporting.runs import Run

ONE_TWO_FIVE = [digit * 10.0**decade for decade in range(-6, 7) for digit in (1, 2, 5)]
"""Ticks of a logarithmic axis that are written out; plotly's own leave the decade away between its powers."""


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
