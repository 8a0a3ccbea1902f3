"""What is said about attention maps, on maps whose habits are known."""

import base64

import numpy as np

from pipeline.reporting.inspection_pages import AttentionKind

TOKENS = [f"t{k}" for k in range(6)]


def one_hot(columns: list[int]) -> np.ndarray:
    return np.eye(6)[columns]


FIRST, BEFORE, ITSELF = one_hot([0] * 6), one_hot([0, 0, 1, 2, 3, 4]), one_hot([0, 1, 2, 3, 4, 5])
EVEN = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]


def kind(name: str, *layers: list[np.ndarray]) -> AttentionKind:
    return AttentionKind(name, TOKENS, TOKENS, np.array(layers))


def test_each_habit_is_counted_in_the_reading() -> None:
    reading = kind("self", [FIRST, FIRST, BEFORE], [ITSELF, EVEN, EVEN]).reading
    assert reading.startswith(
        "More than half of the weight lies in 2 of 6 heads on the first token, in 1 of 6 heads on the token before, "
        "in 1 of 6 heads on the token itself. Sharpest is layer 1, head 1"
    )
    assert kind("self", [EVEN]).reading.startswith(
        "More than half of the weight lies on one of the first token, the token before and the token itself in none of 1 head. "
    )


def test_the_caption_has_the_mean_weights_over_rows_where_the_places_differ() -> None:
    share = round(100 * np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6]))
    expected = (
        f"Layer 1, head 1: {share} % on the first token, {share} % on the token before, {share} % on the token itself, "
    )
    assert kind("self", [EVEN]).caption(0, 0).replace("\u202f", " ").startswith(expected)


def test_cross_attention_has_no_places_relative_to_the_row() -> None:
    assert kind("cross", [FIRST]).habits(0, 0) == {}
    assert kind("cross", [FIRST]).reading.startswith(
        "Sharpest is layer 1, head 1: the strongest place of a row has 100"
    )


def test_weights_survive_their_encoding_within_half_a_step() -> None:
    weights_TS = np.random.default_rng(0).dirichlet(np.ones(6), 6)
    [[head]] = kind("encoder", [weights_TS]).data["layers"]
    decoded = np.frombuffer(base64.b64decode(head["weights"]), "<u2").reshape(6, 6) / 65535
    assert np.abs(decoded - weights_TS).max() < 0.501 / 65535
