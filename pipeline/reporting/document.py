"""A page as one self-contained HTML document: the frame, style and scripts of template/ around a page's own numbers."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from data_prep.files import write_bytes
from pipeline.reporting.quantities import digits, percent

TEMPLATE = files("pipeline.reporting") / "template"


def render(template: str, scripts: list[str], **content: Any) -> str:
    """The document that a template makes of its content; equal content gives equal text."""
    return environment().get_template(template).render(style=asset("page.css"), scripts=scripts, **content)


def plot_scripts() -> list[str]:
    """What draws a page's Plotly figures."""
    return [get_plotlyjs(), asset("plots.js")]


def asset(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def write(path: Path, document: str) -> str:
    """Write a document and return the words that tell where it lies and how to view it."""
    # A sampled text may hold half of a surrogate pair, which UTF-8 cannot: it is shown as a question mark.
    write_bytes(path, document.encode("utf-8", errors="replace"))
    path = path.resolve()
    return f"{path}\nView it in any browser, no network needed: {path.as_uri()}"


@cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.reporting", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(digits=digits, percent=percent, short=short)
    return made


def short(fingerprint: str) -> str:
    """The form of a fingerprint that a reader compares by eye."""
    return fingerprint.removeprefix("sha256:")[:10]
