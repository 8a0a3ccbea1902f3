"""What every figure is made of: plain data for Plotly with a sentence that reads it, and the look that all share.

Plain dicts, since the browser draws them: Plotly's Python classes would add a second to the start and a template to the
page. Text and rules take their colour from the page's style sheet, so that a figure reads in light, dark and print.
"""

import html
from dataclasses import dataclass, field
from typing import Any

from pipeline.reporting.quantities import SPACE

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
    narrow: dict[str, Any] = field(default_factory=dict)
    """What of the layout is another on a narrow screen."""

    @property
    def data(self) -> dict[str, Any]:
        return {
            "data": self.traces,
            "layout": self.layout,
            "choices": {
                group: [{"data": choice.traces, "layout": choice.layout} for choice in choices]
                for group, choices in self.choices.items()
            },
            "narrow": self.narrow,
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


def scaled(values: list[float | None], factor: float) -> list[float | None]:
    return [None if value is None else value * factor for value in values]
