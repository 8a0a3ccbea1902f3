"""The recurrent encoder-decoder: attention against its formulas written as loops, padding, decoding, first weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.layers.alignment import (
    AdditiveScore,
    Attention,
    DotScore,
    GlobalFocus,
    MonotonicFocus,
    MultiplicativeScore,
    PredictiveFocus,
)
from pipeline.loss import token_nll
from pipeline.models.base import NO_TOKEN
from pipeline.models.seq2seq_recurrent import RecurrentSeq2Seq, RecurrentSeq2SeqConfig

# B batch, T target time, S source time, D width, V vocabulary

V, D = 50, 16
VARIANTS = {
    "gru none": {"cell": "gru", "attention": "none"},
    "lstm none bidirectional": {"cell": "lstm", "attention": "none", "bidirectional": True},
    "gru dot": {"cell": "gru", "attention": "dot"},
    "lstm multiplicative": {"cell": "lstm", "attention": "multiplicative", "layers": 2},
    "gru additive bidirectional": {"cell": "gru", "attention": "additive", "bidirectional": True, "layers": 2},
    "lstm additive bidirectional": {"cell": "lstm", "attention": "additive", "bidirectional": True},
    "local predictive": {"cell": "lstm", "attention": "multiplicative", "window": 2},
    "local monotonic": {"cell": "gru", "attention": "dot", "window": 1, "alignment": "monotonic"},
    "untied, own tables": {
        "cell": "gru", "attention": "dot", "tied": False, "shared_embedding": False, "embedding_width": 7,
    },
}  # fmt: skip


def config(**settings) -> RecurrentSeq2SeqConfig:
    return RecurrentSeq2SeqConfig(**{"vocab_size": V, "cell": "gru", "layers": 1, "width": D} | settings)


@pytest.fixture(params=VARIANTS)
def model(request) -> RecurrentSeq2Seq:
    torch.manual_seed(0)
    return config(**VARIANTS[request.param]).build().eval()


def tokens(rows: int = 3, columns: int = 10, seed: int = 1) -> Tensor:
    return torch.randint(0, V, (rows, columns), generator=torch.Generator().manual_seed(seed))


def sources() -> Tensor:
    """Three rows of 9, 5 and 7 tokens."""
    source_BS = tokens(3, 9, seed=2)
    source_BS[1, 5:] = source_BS[2, 7:] = NO_TOKEN
    return source_BS


def predict(model: RecurrentSeq2Seq, tokens_BT: Tensor, source_BS: Tensor) -> Tensor:
    return model(tokens_BT, model.encode(source_BS))[0]


# -- attention by its formulas, a number at a time


def dot(score: DotScore, s: Tensor, h: Tensor) -> float:
    return sum(float(s[d] * h[d]) for d in range(D))


def multiplicative(score: MultiplicativeScore, s: Tensor, h: Tensor) -> float:
    W = score.key.weight
    return sum(float(s[d] * W[d, e] * h[e]) for d in range(D) for e in range(D))


def additive(score: AdditiveScore, s: Tensor, h: Tensor) -> float:
    v, W1, W2 = score.energy.weight[0], score.key.weight, score.query.weight
    return sum(float(v[d]) * math.tanh(float(W1[d] @ h + W2[d] @ s)) for d in range(D))


SCORES = {
    "dot": (DotScore, dot),
    "multiplicative": (MultiplicativeScore, multiplicative),
    "additive": (AdditiveScore, additive),
}


def softmax(scores: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(score) for score in scores.values())
    return {place: math.exp(score) / total for place, score in scores.items()}


def alignment_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Decoder states, encoder states, and which of these are there: the second row has 4 of 6."""
    generator = torch.Generator().manual_seed(3)
    query_BTD, memory_BSD = (torch.randn(2, n, D, generator=generator, dtype=torch.float64) for n in (5, 6))
    mask_BS = torch.ones(2, 6, dtype=torch.bool)
    mask_BS[1, 4:] = False
    return query_BTD, memory_BSD, mask_BS


def assert_attention_equals(attention: Attention, start: int, expected_weight) -> None:
    """Weights, context and attentional states against `expected_weight(row, position, place, score of each place)`."""
    query_BTD, memory_BSD, mask_BS = alignment_inputs()
    attended_BTD, weights_BTS = attention(query_BTD, attention.read(memory_BSD, mask_BS), start)
    for b in range(2):
        for t in range(5):
            expected = [expected_weight(query_BTD[b, t], t, s, memory_BSD[b, : mask_BS[b].sum()]) for s in range(6)]
            torch.testing.assert_close(weights_BTS[b, t], torch.tensor(expected, dtype=torch.float64))
            context = sum(w * memory_BSD[b, s] for s, w in enumerate(expected))
            by_hand = torch.tanh(attention.combine.weight @ torch.cat([context, query_BTD[b, t]]))
            torch.testing.assert_close(attended_BTD[b, t], by_hand)


@pytest.mark.parametrize("name", SCORES)
def test_global_attention_equals_its_formula(name):
    kind, formula = SCORES[name]
    torch.manual_seed(0)
    attention = Attention(D, D, kind(D), GlobalFocus()).double().requires_grad_(False)

    def weight(query, t, s, memory):
        return softmax({i: formula(attention.score, query, h) for i, h in enumerate(memory)}).get(s, 0.0)

    assert_attention_equals(attention, 0, weight)


@pytest.mark.parametrize("name", SCORES)
def test_a_monotonic_window_equals_its_formula(name):
    kind, formula = SCORES[name]
    torch.manual_seed(0)
    attention = Attention(D, D, kind(D), MonotonicFocus(1)).double().requires_grad_(False)

    def weight(query, t, s, memory):
        # Positions 2 to 6: the last ones see nothing of a source of four.
        seen = [i for i in range(len(memory)) if abs(i - (t + 2)) <= 1]
        return softmax({i: formula(attention.score, query, memory[i]) for i in seen}).get(s, 0.0)

    assert_attention_equals(attention, 2, weight)


@pytest.mark.parametrize("name", SCORES)
def test_a_predicted_window_equals_its_formula(name):
    kind, formula = SCORES[name]
    torch.manual_seed(0)
    attention = Attention(D, D, kind(D), PredictiveFocus(D, 2)).double().requires_grad_(False)
    focus = attention.focus

    def weight(query, t, s, memory):
        inner = [math.tanh(float(focus.inner.weight[d] @ query)) for d in range(D)]
        activation = sum(float(focus.outer.weight[0, d]) * inner[d] for d in range(D))
        centre = len(memory) / (1 + math.exp(-activation))
        seen = [i for i in range(len(memory)) if abs(i - centre) <= 2]
        share = softmax({i: formula(attention.score, query, memory[i]) for i in seen}).get(s, 0.0)
        deviation = 2 / 2
        return share * math.exp(-((s - centre) ** 2) / (2 * deviation**2))

    assert_attention_equals(attention, 0, weight)


# -- the encoder


def test_padding_of_the_source_changes_no_logit_and_no_loss(model):
    logits = predict(model, tokens(), sources())
    longer = F.pad(sources(), (0, 5), value=NO_TOKEN)
    assert torch.equal(predict(model, tokens(), longer), logits)
    targets = tokens(seed=4)
    assert torch.equal(token_nll(predict(model, tokens(), longer), targets), token_nll(logits, targets))


def test_a_row_in_a_batch_of_longer_ones_equals_that_row_alone(model):
    together = predict(model, tokens(), sources())
    for row, length in enumerate([9, 5, 7]):
        alone = predict(model, tokens()[row : row + 1], sources()[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=1e-6)


def test_a_source_without_tokens_gives_finite_logits_and_gradients(model):
    source_BS = sources()
    source_BS[1] = NO_TOKEN
    logits = predict(model, tokens(), source_BS)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_decoder_begins_with_a_projection_of_both_directions_ends(cell):
    torch.manual_seed(0)
    model = config(cell=cell, layers=2, bidirectional=True).build().eval()
    source_BS = tokens(1, 6, seed=2)
    state = model.encode(source_BS)
    outputs_SE = model.encoder.rnn(model.source_embedding(source_BS))[0][0]
    # The last layer's outputs end where each direction ends: forwards at the last token, backwards at the first.
    ends_E = torch.cat([outputs_SE[-1, :D], outputs_SE[0, D:]])
    project = model.encoder.bridges[0][0].layers[1]
    torch.testing.assert_close(state.hidden[0][1, 0], torch.tanh(project.weight @ ends_E + project.bias))
    torch.testing.assert_close(state.memory.values_BSD[0], outputs_SE @ model.attention.project.weight.T)
    assert [part.shape for part in state.hidden] == [(2, 1, D)] * (2 if cell == "lstm" else 1)


def test_without_attention_the_decoder_goes_on_from_the_encoders_end():
    torch.manual_seed(0)
    model = config(cell="lstm", attention="none", layers=2).build().eval()
    source_BS, tokens_BT = tokens(3, 6, seed=2), tokens()
    _, end = model.encoder.rnn(model.source_embedding(source_BS))
    outputs, _ = model.decoder(model.target_embedding(tokens_BT), end)
    torch.testing.assert_close(predict(model, tokens_BT, source_BS), model.head(outputs))
    assert model.encode(source_BS).memory is None


# -- decoding


@pytest.mark.parametrize("cuts", [[1] * 10, [4, 1, 5]], ids=["by one", "uneven"])
def test_cached_decoding_equals_full_forward(model, cuts):
    whole = predict(model, tokens(), sources())
    state, pieces = model.init_state(3, 10, sources()), []
    for piece in tokens().split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-6, atol=1e-6)


def test_a_future_token_never_changes_a_past_logit(model):
    batch = tokens()
    before = predict(model, batch, sources())
    batch[:, 6] = (batch[:, 6] + 1) % V
    after = predict(model, batch, sources())
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


def test_selected_rows_go_on_as_those_rows_alone(model):
    _, state = model(tokens(), model.encode(sources()))
    rows = torch.tensor([2, 0, 2])
    selected = model.select(state, rows)
    logits, _ = model(tokens()[rows, :3], selected)
    for place, row in enumerate(rows.tolist()):
        _, alone = model(tokens()[row : row + 1], model.encode(sources()[row : row + 1]))
        expected, _ = model(tokens()[row : row + 1, :3], alone)
        torch.testing.assert_close(logits[place : place + 1], expected, rtol=1e-6, atol=1e-6)
    selected.hidden[0].zero_()
    assert state.hidden[0].abs().sum() > 0


def test_a_call_without_a_source_is_refused_in_words():
    model = config().build()
    with pytest.raises(ValueError, match="predicts from a source"):
        model(tokens())
    with pytest.raises(ValueError, match="3 targets need as many sources"):
        model.init_state(3, 10, sources()[:2])
    with pytest.raises(ValueError, match="attends to one"):
        model.attention_maps(tokens())


# -- attention maps


@pytest.mark.parametrize("name", [name for name, settings in VARIANTS.items() if settings["attention"] != "none"])
def test_attention_maps_are_zero_at_padding_and_sum_to_one_where_nothing_is_cut_off(name):
    torch.manual_seed(0)
    model = config(**VARIANTS[name]).build().eval()
    longer = F.pad(sources(), (0, 4), value=NO_TOKEN)
    [weights_B1TS] = model.attention_maps(tokens(), longer)["cross"]
    assert weights_B1TS.shape == (3, 1, 10, 13)
    absent = (longer == NO_TOKEN)[:, None, None].expand_as(weights_B1TS)
    assert (weights_B1TS[absent] == 0).all()
    sums = weights_B1TS.sum(3)
    if "window" not in VARIANTS[name]:
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert (sums <= 1 + 1e-6).all()
    assert weights_B1TS.max() > 0


def test_without_attention_there_is_no_map():
    assert config(attention="none").build().attention_maps(tokens(), sources()) == {}


# -- training


def test_the_untrained_loss_is_ln_v_within_2_percent(model):
    loss = token_nll(predict(model, tokens(), sources()), tokens(seed=4)).mean().item()
    assert loss == pytest.approx(math.log(V), rel=0.02)


def test_every_parameter_has_a_gradient(model):
    token_nll(predict(model.train(), tokens(), sources()), tokens(seed=4)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_one_batch_is_overfitted_to_below_0_05(name):
    torch.manual_seed(0)
    # The usual range is made for hundreds of units: with a few, hardly anything of the source arrives at first.
    model = config(**{"width": 32, "init_range": 0.3} | VARIANTS[name]).build()
    # A target is told from its source alone: all begin alike and repeat one token.
    source_BS, tokens_BT = sources(), torch.zeros(3, 5, dtype=torch.int64)
    targets_BT = torch.tensor([[3], [8], [21]]).repeat(1, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(50):
        loss = token_nll(predict(model, tokens_BT, source_BS), targets_BT).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("init_range", [0.1, 0.05])
def test_every_parameter_begins_uniform_within_the_range(init_range):
    model = config(
        vocab_size=500, width=100, cell="lstm", bidirectional=True, attention="additive", window=2, layers=2,
        init_range=init_range, forget_bias=0.0,
    ).build()  # fmt: skip
    for name, parameter in model.named_parameters():
        bound = init_range * (math.sqrt(10) if "embedding" in name or "head" in name else 1)  # 100 features for 1,000
        assert parameter.abs().max() <= bound, name
        # A vector of 100 has a deviation that is less sure.
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), name


def test_forget_gates_begin_open():
    model = config(cell="lstm", bidirectional=True).build()
    cells = dict(model.encoder.rnn.named_parameters()) | dict(model.decoder.named_parameters(prefix="decoder"))
    biases = [parameter for name, parameter in cells.items() if "bias_ih" in name]
    assert len(biases) == 3  # Two directions and the decoder.
    for bias in biases:
        assert (bias[D : 2 * D] >= 0.9).all()
        assert (bias[:D] <= 0.1).all()
        assert (bias[2 * D :] <= 0.1).all()


def test_tables_are_shared_as_configured():
    shared, apart = config().build(), config(tied=False, shared_embedding=False).build()
    assert shared.source_embedding is shared.target_embedding
    assert shared.head.weight is shared.target_embedding.weight
    tables = {id(t) for t in (apart.source_embedding.weight, apart.target_embedding.weight, apart.head.weight)}
    assert len(tables) == 3


def test_flops_count_what_multiplies_for_a_target_token_and_its_source_token():
    layer, square = 3 * 2 * D * D, D * D
    assert config(attention="none").build().flops_per_token(40) == 6 * (2 * layer + V * D)
    # Two multiplications of D for each place of the source, the key of each, and the layer before the head.
    expected = 6 * (2 * layer + square + 2 * square + V * D + 2 * D * 40)
    assert config(attention="multiplicative").build().flops_per_token(40) == expected
    local = config(attention="dot", window=2, tied=False, shared_embedding=False).build()
    predicting = square + D
    assert local.flops_per_token(40) == 6 * (2 * layer + predicting + 2 * square + V * D + 2 * D * 40)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"window": 0}, "window is 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"init_range": -1.0}, "init_range is -1.0"),
        ({"attention": "none", "window": 3}, "window is 3, but attention is none"),
        ({"embedding_width": 8}, "embedding_width is 8, width 16: a tied head needs them equal"),
    ],
)
def test_an_impossible_model_is_refused_with_the_value(settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)
