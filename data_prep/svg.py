"""Plots as SVG: columns and curves with axes, drawn from numbers, without a script."""

from collections.abc import Sequence
from html import escape
from math import log10

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 12, 52
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


def columns(
    labels: Sequence[str], series: Sequence[Sequence[float]], names: Sequence[str], axis: str, unit: str
) -> str:
    """Stacked columns: `series` has a row of heights for each name, one height for each label."""
    heights = [sum(stack) for stack in zip(*series, strict=True)]
    top = ceiling(max(heights))
    step = INNER_WIDTH / len(labels)
    parts = horizontal_rules(top)
    below = [0.0] * len(labels)
    for number, (name, row) in enumerate(zip(names, series, strict=True)):
        for place, value in enumerate(row):
            if value:
                height = value / top * INNER_HEIGHT
                x, y = LEFT + (place + 0.08) * step, TOP + INNER_HEIGHT - (below[place] + value) / top * INNER_HEIGHT
                about = escape(f"{name}, {labels[place]}: {value:,.0f} {unit}")
                parts.append(
                    f'<rect class="s{number % 8}" x="{x:.2f}" y="{y:.2f}" width="{0.84 * step:.2f}" '
                    f'height="{max(height, 0.75):.2f}"><title>{about}</title></rect>'
                )
                below[place] += value
    every = -(-len(labels) // 12)
    for place, label in enumerate(labels):
        if place % every == 0:
            parts.append(text(LEFT + (place + 0.5) * step, HEIGHT - BOTTOM + 18, label))
    return svg([*parts, text(LEFT + INNER_WIDTH / 2, HEIGHT - 8, axis)], f"{unit} by {axis}")


def powers_curve(xs: Sequence[float], ys: Sequence[float], x_axis: str, y_axis: str) -> str:
    """A curve over two axes of powers of ten, from 1."""
    right, top = decades(max(xs)), decades(max(ys))
    parts = []
    for power in range(top + 1):
        y = TOP + INNER_HEIGHT * (top - power) / top
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        parts.append(text(LEFT - 8, y + 4, short(10.0**power), "end"))
    for power in range(right + 1):
        parts.append(text(LEFT + INNER_WIDTH * power / right, HEIGHT - BOTTOM + 18, short(10.0**power)))
    places = [
        f"{LEFT + INNER_WIDTH * log10(x) / right:.2f},{TOP + INNER_HEIGHT * (top - log10(y)) / top:.2f}"
        for x, y in zip(xs, ys, strict=True)
    ]
    parts.append(f'<polyline class="curve" points="{" ".join(places)}"/>')
    parts.append(text(LEFT + INNER_WIDTH / 2, HEIGHT - 8, x_axis))
    return svg(parts, f"{y_axis} by {x_axis}, both in powers of ten")


def decades(value: float) -> int:
    """The least power of ten, from 1, that is not below a number."""
    power = 1
    while 10.0**power < value:
        power += 1
    return power


def ceiling(value: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below a positive number."""
    size = 1.0
    while size * 10 <= value:
        size *= 10
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= value)


def horizontal_rules(top: float) -> list[str]:
    parts = []
    for quarter in range(5):
        y = TOP + INNER_HEIGHT * (1 - quarter / 4)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        parts.append(text(LEFT - 8, y + 4, short(top * quarter / 4), "end"))
    return parts


def text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(content)}</text>'


def svg(parts: Sequence[str], name: str) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">\n{inside}\n</svg>'


def short(value: float) -> str:
    """A number with its thousands, millions or billions as a letter."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
