"""HTML pages that need nothing beside them, from the templates of this package."""

from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("template")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


def page(template: str, **values: Any) -> str:
    """A template's text with these values, escaped."""
    return TEMPLATES.get_template(template).render(**values)
