"""Pages as their readers get them, taken apart."""

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """A page taken apart by the standard library's parser: text, attributes of each tag, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def figures(self) -> dict[str, dict]:
        """The figures' data by the name of their plot."""
        attributes = [attrs for tag, attrs in self.tags if tag == "script"]
        pairs = zip(attributes, self.scripts, strict=True)
        return {str(attrs["data-plot"])[5:]: json.loads(data) for attrs, data in pairs if "data-plot" in attrs}
