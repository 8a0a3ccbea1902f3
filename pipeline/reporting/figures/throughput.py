"""Speed: tokens per second and the share of the machine's peak, over the run's time."""

from statistics import median

from pipeline.reporting.figures.figure import POINTS, Figure, axis, layout, line, scaled
from pipeline.reporting.quantities import percent, si, time_unit
from pipeline.reporting.runs import Run


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


def running_median(values: list[float]) -> list[float]:
    """Each value as the median of its neighbourhood, a twentieth of the run wide: one slow step leaves no dent."""
    reach = max(1, len(values) // 40)
    return [median(values[max(0, k - reach) : k + reach + 1]) for k in range(len(values))]
