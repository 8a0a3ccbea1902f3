"""The pages of `inspect`: attention maps, gradient flow, loss by position, each in the report's frame."""

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.reporting import document
from pipeline.reporting.figures.context import context_loss, early_and_late, measured
from pipeline.reporting.figures.figure import colour
from pipeline.reporting.figures.gradient import (
    EXPLODING,
    VANISHING,
    GradientFlow,
    columns,
    gradient_flow,
    left,
    rows,
    share,
)
from pipeline.reporting.quantities import and_list, digits, percent
from pipeline.reporting.runs import Run, of_one_text

# L layers, H heads, T positions that look, S positions looked at

KINDS = {
    "encoder": ("Encoder self-attention", "Every position of the source may look at every other."),
    "self": ("Self-attention", "A position looks at itself and at those before it, never ahead."),
    "cross": (
        "Cross-attention",
        "Where in the source the decoder looks. A row is named by the token that it predicts, as in an alignment.",
    ),
}
HABIT = 0.5
"""A head that puts more than this share of its weight on one place relative to the row has a habit."""


@dataclass(frozen=True)
class AttentionKind:
    """The attention of one kind: "encoder", "self" or "cross"."""

    kind: str
    rows: list[str]
    """Labels of the positions that look (T)."""
    columns: list[str]
    """Labels of the positions looked at (S)."""
    weights_LHTS: np.ndarray

    @property
    def title(self) -> str:
        return KINDS[self.kind][0]

    @property
    def lead(self) -> str:
        layers, heads = self.weights_LHTS.shape[:2]
        size = f"{layers} layer{'s' * (layers > 1)} with {heads} head{'s' * (heads > 1)}{' each' * (layers > 1)}"
        return f"{KINDS[self.kind][1]} {size}."

    @property
    def data(self) -> dict[str, Any]:
        """What the script draws: labels, and for each layer and head a caption and the weights row by row.

        Weights are 16-bit shares of 65535, little-endian, in base64: a third of the text that digits would take.
        """
        shares_LHTS = np.rint(self.weights_LHTS * 65535).astype("<u2")
        return {
            "rows": self.rows,
            "columns": self.columns,
            "layers": [
                [
                    {"caption": self.caption(layer, head), "weights": base64.b64encode(shares_TS.tobytes()).decode()}
                    for head, shares_TS in enumerate(shares_HTS)
                ]
                for layer, shares_HTS in enumerate(shares_LHTS)
            ],
        }

    def sharpness(self, layer: int, head: int) -> float:
        """The largest weight of a row, averaged over rows that have a choice of at least three positions."""
        rows_TS = self.weights_LHTS[layer, head]
        open_rows = (rows_TS > 0).sum(1) > 2
        return float((rows_TS[open_rows] if open_rows.any() else rows_TS).max(1).mean())

    def habits(self, layer: int, head: int) -> dict[str, float]:
        """Shares of the weight on places relative to the row, averaged over rows where they differ; none between two texts."""
        rows_TS = self.weights_LHTS[layer, head]
        if self.kind == "cross" or len(rows_TS) < 3:
            return {}
        places = {"the first token": -len(rows_TS), "the token before": -1, "the token itself": 0}
        at = np.arange(2, len(rows_TS))
        return {name: float(rows_TS[at, np.maximum(at + back, 0)].mean()) for name, back in places.items()}

    def caption(self, layer: int, head: int) -> str:
        words = f"Layer {layer + 1}, head {head + 1}: "
        words += "".join(f"{percent(share, 0)} on {place}, " for place, share in self.habits(layer, head).items())
        return words + f"{percent(self.sharpness(layer, head), 0)} on the strongest place of a row."

    @property
    def reading(self) -> str:
        """How many heads have which habit, and which is the sharpest."""
        layers, heads = self.weights_LHTS.shape[:2]
        every = [(layer, head) for layer in range(layers) for head in range(heads)]
        shares = [found for place in every if (found := self.habits(*place))]
        strong = [max(found, key=found.__getitem__) for found in shares if max(found.values()) > HABIT]
        of = f"{len(every)} head{'s' * (len(every) > 1)}"
        words = ""
        if strong:
            parts = [f"{strong.count(place)} of {of} on {place}" for place in dict.fromkeys(strong)]
            words = f"More than half of the weight lies in {', in '.join(parts)}. "
        elif shares:
            words = f"More than half of the weight lies on one of {and_list(list(shares[0]))} in none of {of}. "
        layer, head = max(every, key=lambda place: self.sharpness(*place))
        strongest = percent(self.sharpness(layer, head), 0)
        return f"{words}Sharpest is layer {layer + 1}, head {head + 1}: the strongest place of a row has {strongest} on average."


def attention_page(run: str, headline: str, summary: str, kinds: list[AttentionKind]) -> str:
    return document.render(
        "attention.html",
        [document.asset("attention.js")],
        title=f"Attention · {run}",
        headline=headline,
        summary=summary,
        kinds=kinds,
    )


def gradient_page(flows: list[GradientFlow], summary: str, remarks: list[str]) -> str:
    distance = len(flows[0].untrained) - 1
    note = (
        f"The factor a step is that of the straight line through the logarithm from distance 1 to {distance}. Below "
        f"{VANISHING} a step, which would leave {share(distance * math.log10(VANISHING))}, the gradient counts as vanishing; above "
        f"{EXPLODING} as exploding; between them as a highway. What is left is the norm at the largest distance relative to the one "
        "at 0, where the loss reads the state directly."
    )
    lead = (
        "How strongly the loss of one token depends on the model's hidden state so many tokens earlier: the norm of its gradient, "
        "over all layers; mean of the logarithm over the samples. What gets no gradient through the past is not learned from it."
    )
    return document.render(
        "figure.html",
        document.plot_scripts(),
        title="Gradient flow",
        headline=flow_headline(flows),
        summary=summary,
        section="Gradient of the loss by distance",
        lead=lead,
        figure=gradient_flow(flows),
        columns=columns(distance),
        table=[(flow.run, colour(flow.position), cells) for flow, cells in zip(flows, rows(flows), strict=True)],
        note=note,
        remarks=remarks,
    )


def flow_headline(flows: list[GradientFlow]) -> str:
    """What is left at the largest distance, of the run that keeps most and of the one that keeps least."""
    distance = len(flows[0].untrained) - 1
    whole = [(left(flow.trained), flow.run) for flow in flows if flow.principal and flow.trained is not None]
    (least, worst), *_, (most, best) = sorted(whole * 2, key=lambda kept: -math.inf if kept[0] is None else kept[0])
    words = f"{distance} steps back, {share(most)} of the gradient is left in {best}"
    return words + (f", {share(least)} in {worst}" if len(whole) > 1 else "")


def context_page(runs: list[Run], title: str, remarks: list[str]) -> str:
    figure = context_loss(runs)
    assert figure is not None, "the command refuses runs without losses by position"
    ends = {run.name: (early, late) for run, early, late in early_and_late(measured(runs))}
    best = min(ends, key=lambda name: ends[name][1])
    headline = f"{best} predicts the last quarter of its context best, at {digits(ends[best][1])} nats per token"
    return document.render(
        "figure.html",
        document.plot_scripts(),
        title=f"Loss by position · {title}",
        headline=headline if of_one_text(runs) else f"{len(runs)} runs, each by position in its own text",
        summary="A model that uses its context predicts late positions in it better than early ones (Kaplan et al. 2020, Figure 7).",
        section="Loss by position in the context",
        lead="Thin lines are single positions of the validation windows, thick lines means over stretches that grow with the position.",
        figure=figure,
        columns=["First sixteenth", "Last quarter", "Gain"],
        table=[
            (run.name, colour(position), [digits(early), digits(late), digits(early - late, 2)])
            for position, run in enumerate(runs)
            if run.name in ends
            for early, late in [ends[run.name]]
        ],
        note="Losses are in nats per token, of the first sixteenth and of the last quarter of the context.",
        remarks=remarks,
    )
