"""Which samples each optimizer step takes, where batches grow (Brown et al. 2020, appendix B) and contexts change: pure arithmetic.

A run is cut into segments of steps with the same batch and context. Position, tokens and step are closed forms of one another
inside a segment, so that any of them is found from any other without counting through the run.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class BatchRamp:
    """A global batch that grows with the tokens seen."""

    start_tokens: int
    """Tokens in the first global batch."""
    over_tokens: int
    """Tokens of the run over which the batch grows linearly to data.batch_tokens."""
    multiple_tokens: int | None = None
    """Every batch is a whole number of times as many tokens; the greatest common divisor of the first and the full batch when not
    given. Micro-batches of all ranks together must divide it, so it decides how many ranks can share the first steps."""

    def __post_init__(self):
        for name in ("start_tokens", "over_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.batch_ramp.{name} is {getattr(self, name)}: it must be at least 1")


class Segment(NamedTuple):
    """Steps of like batches."""

    step: int
    """Steps before it, as are positions and tokens."""
    position: int
    tokens: int
    batch_tokens: int
    context: int

    @property
    def sequences(self) -> int:
        return self.batch_tokens // self.context

    def at(self, step: int) -> tuple[int, int, int]:
        """Step, position and tokens before a step of this segment."""
        steps = step - self.step
        return step, self.position + steps * self.sequences, self.tokens + steps * self.batch_tokens


class BatchSchedule:
    """The global batch of every step of a run, whatever the number of ranks.

    A position counts samples (sequences) from the start of the run; it means the same sample whatever comes later.

    Args:
        batch_tokens: tokens in a global batch, when a ramp is over.
        context: tokens in a sequence; with `contexts` the longest of them.
        ramp: how batches grow, in tokens.
        contexts: contexts by the number of tokens from which on they hold; each divides `context`.
        past: the segments that a run has behind it that was begun with other settings.
        start: step, position and tokens at which these settings begin to hold, after the past.

    Raises:
        ValueError: sizes that do not go into each other.
    """

    def __init__(
        self, batch_tokens: int, context: int, *, ramp: BatchRamp | None = None, contexts: Mapping[int, int] | None = None,
        past: Iterable[Sequence[int]] = (), start: Sequence[int] = (0, 0, 0),
    ):  # fmt: skip
        self.batch_tokens, self.context, self.ramp, self.contexts = (
            batch_tokens,
            context,
            ramp,
            contexts or {0: context},
        )
        self.past, self.start = [Segment(*row) for row in past], tuple(start)
        self.unit = batch_tokens if ramp is None else ramp.multiple_tokens or math.gcd(batch_tokens, ramp.start_tokens)
        self._check()
        self.segments = [*self.past, *self._segments(*start)]
        self._steps = [segment.step for segment in self.segments]
        self._positions = [segment.position for segment in self.segments]

    def _check(self) -> None:
        if self.ramp is not None:
            first, full, unit, over = self.ramp.start_tokens, self.batch_tokens, self.unit, self.ramp.over_tokens
            if first > full:
                raise ValueError(
                    f"data.batch_ramp.start_tokens {first} is more than the data.batch_tokens {full} to grow to: lower it"
                )
            if unit < 1 or unit % self.context or first % unit or full % unit:
                raise ValueError(
                    f"A ramp of batches from {first} to {full} tokens in steps of {unit} with sequences of {self.context}: make "
                    "data.batch_ramp.multiple_tokens a multiple of data.context, and start_tokens and data.batch_tokens multiples of it"
                )
            if over < first:
                raise ValueError(
                    f"data.batch_ramp.over_tokens {over} is less than its first batch of {first}: raise it"
                )
        if min(self.contexts) != 0 or max(self.contexts.values()) != self.context:
            raise ValueError(
                f"data.context_schedule is {dict(self.contexts)}: it must begin at 0 tokens, and data.context {self.context} must be "
                "the longest in it"
            )
        for context in self.contexts.values():
            if context < 1 or self.context % context:
                raise ValueError(
                    f"data.context_schedule has a context of {context}, which does not divide data.context {self.context}: "
                    "choose a divisor"
                )

    def _segments(self, step: int, position: int, tokens: int) -> list[Segment]:
        changes = sorted({*self.contexts, *self._growth()})
        segments = []
        while True:
            context = self.contexts[max(begin for begin in self.contexts if begin <= tokens)]
            segments.append(segment := Segment(step, position, tokens, self._batch_tokens(tokens), context))
            following = bisect_right(changes, tokens)
            if following == len(changes):
                return segments
            steps = -(-(changes[following] - tokens) // segment.batch_tokens)
            step, position, tokens = segment.at(step + steps)

    def _batch_tokens(self, tokens: int) -> int:
        """The batch of a step that begins after so many tokens: on the line from the first to the full batch, rounded down."""
        if self.ramp is None or tokens >= self.ramp.over_tokens:
            return self.batch_tokens
        first, over = self.ramp.start_tokens, self.ramp.over_tokens
        return first + (self.batch_tokens - first) * tokens // (over * self.unit) * self.unit

    def _growth(self) -> list[int]:
        """After how many tokens the batch grows."""
        if self.ramp is None or self.ramp.start_tokens == self.batch_tokens:
            return []
        growth, over = self.batch_tokens - self.ramp.start_tokens, self.ramp.over_tokens
        return [-(-level * self.unit * over // growth) for level in range(1, growth // self.unit + 1)]

    def segment_at(self, step: int) -> Segment:
        return self.segments[max(0, bisect_right(self._steps, step) - 1)]

    def position_at(self, step: int) -> int:
        """Samples before a step."""
        return self.segment_at(step).at(step)[1]

    def tokens_at(self, step: int) -> int:
        """Tokens before a step."""
        return self.segment_at(step).at(step)[2]

    def sequences_at(self, step: int) -> int:
        """Samples in the global batch of a step."""
        return self.segment_at(step).sequences

    def step_of(self, position: int) -> int:
        """The step that takes the sample at a position."""
        segment = self.segments[bisect_right(self._positions, position) - 1]
        return segment.step + (position - segment.position) // segment.sequences

    @property
    def phases(self) -> list[Segment]:
        """The first segment of each stretch of the run with one context."""
        segments = self.segments
        return [s for k, s in enumerate(segments) if k == 0 or s.context != segments[k - 1].context]

    def divisor(self, step: int) -> int:
        """Tokens that divide every batch from a step on."""
        return math.gcd(*(s.batch_tokens for s in self.segments[self.segments.index(self.segment_at(step)) :]))

    def history(self, step: int | None = None) -> dict[str, Any]:
        """What the run has behind it at a step at which the settings change, or had when these began: plain values for the
        arguments `past` and `start` of a schedule that goes on from there."""
        if step is None:
            return {"past": [list(segment) for segment in self.past], "start": list(self.start)}
        past = [list(segment) for segment in self.segments if segment.step < step]
        return {"past": past, "start": list(self.segment_at(step).at(step))}


def last_within(limit: float, amount_at: Callable[[int], float]) -> int:
    """The last step up to which an amount that grows by 1 or more with every step is at most `limit`."""
    return bisect_right(range(int(limit) + 2), limit, key=amount_at) - 1
