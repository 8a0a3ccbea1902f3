"""Recurrent language models: their equations, first weights, dropout, and the state that they carry."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.layers.dropout import VariationalDropout
from pipeline.loss import token_nll
from pipeline.models.recurrent import GRUConfig, LSTMConfig, RecurrentConfig, RecurrentLanguageModel, RNNConfig

# B batch, T time, D width, V vocabulary

V, D = 60, 16
SIZES = {"vocab_size": V, "layers": 2, "width": D}
VARIANTS: dict[str, RecurrentConfig] = {
    "rnn": RNNConfig(**SIZES),
    "relu": RNNConfig(**SIZES, activation="relu"),
    "irnn": RNNConfig(**SIZES, activation="relu", identity=True),
    "gru": GRUConfig(**SIZES),
    "lstm": LSTMConfig(**SIZES),
    "dropout": LSTMConfig(**SIZES, dropout=0.4),
    "variational": LSTMConfig(**SIZES, dropout=0.4, variational=True),
    "variational gru": GRUConfig(**SIZES, dropout=0.4, variational=True),
    "one-hot": RNNConfig(**SIZES, embedding="one-hot", tied=False),
    "narrow embedding": GRUConfig(**SIZES, embedding_width=6, tied=False),
    "zaremba": LSTMConfig(**SIZES, tied=False, init_range=0.1, forget_bias=0.0),
}


@pytest.fixture(params=VARIANTS)
def model(request) -> RecurrentLanguageModel:
    torch.manual_seed(0)
    return VARIANTS[request.param].build().eval()


def tokens(rows: int = 3, columns: int = 12) -> Tensor:
    return torch.randint(0, V, (rows, columns), generator=torch.Generator().manual_seed(1))


# One step of a layer by its equations: (input, state, W_ih, W_hh, b_ih, b_hh) -> the next state, hidden first.


def simple_step(f):
    def step(x, state, W, U, b, c):
        return (f(W @ x + b + U @ state[0] + c),)

    return step


def lstm_step(x, state, W, U, b, c):
    gates = (W @ x + b + U @ state[0] + c).view(4, -1)
    input_gate, forget_gate, output_gate = (torch.sigmoid(gates[n]) for n in (0, 1, 3))
    cell = forget_gate * state[1] + input_gate * torch.tanh(gates[2])
    return output_gate * torch.tanh(cell), cell


def gru_step(x, state, W, U, b, c):
    [h] = state
    from_input, from_state = (W @ x + b).view(3, -1), (U @ h + c).view(3, -1)
    reset, update = (torch.sigmoid(from_input[n] + from_state[n]) for n in (0, 1))
    # torch's variant; Cho et al. have U (reset * h).
    candidate = torch.tanh(from_input[2] + reset * from_state[2])
    return ((1 - update) * candidate + update * h,)


@pytest.mark.parametrize(
    ("config", "step"),
    [
        (RNNConfig(**SIZES), simple_step(torch.tanh)),
        (RNNConfig(**SIZES, activation="relu"), simple_step(lambda x: x.clamp(min=0))),
        (GRUConfig(**SIZES, init_range=0.5), gru_step),
        (LSTMConfig(**SIZES, init_range=0.5), lstm_step),
    ],
    ids=["rnn tanh", "rnn relu", "gru", "lstm"],
)
def test_a_cell_equals_its_equations_written_by_hand(config, step):
    torch.manual_seed(0)
    model = config.build().double()
    logits, state = model(tokens(1, 7))
    weights = dict(model.rnn.named_parameters())
    sequence = list(model.token_embedding(tokens(1, 7))[0])
    for layer in range(2):
        own = [weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        current, outputs = tuple(torch.zeros(D, dtype=torch.float64) for _ in state), []
        for x in sequence:
            current = step(x, current, *own)
            outputs.append(current[0])
        sequence = outputs
        for part, by_hand in zip(state, current, strict=True):
            torch.testing.assert_close(part[layer, 0], by_hand)
    torch.testing.assert_close(logits[0], torch.stack(sequence) @ model.token_embedding.weight.T + model.head.bias)


def test_the_untrained_loss_is_ln_v_within_2_percent(model):
    batch = tokens(40, 26)
    loss = token_nll(model(batch[:, :-1])[0], batch[:, 1:]).mean().item()
    assert loss == pytest.approx(math.log(V), rel=0.02)


def test_a_future_token_never_changes_a_past_logit(model):
    batch = tokens()
    before, _ = model(batch)
    batch[:, 8] = (batch[:, 8] + 1) % V
    after, _ = model(batch)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 1, 6], [6, 6]], ids=["by one", "uneven", "halves"])
def test_a_carried_state_makes_pieces_equal_the_whole(model, cuts):
    whole, end = model(tokens())
    state, pieces = model.init_state(3, 12), []
    for piece in tokens().split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state, end, rtol=1e-6, atol=1e-6)


def test_a_state_is_tensors_of_layers_rows_and_width(model):
    _, end = model(tokens())
    assert [part.shape for part in end] == [(2, 3, D)] * (2 if isinstance(model.config, LSTMConfig) else 1)
    assert [part.shape for part in model.init_state(3, 5)] == [part.shape for part in end]
    assert model.carries_state


def test_selected_rows_go_on_as_those_rows_alone(model):
    _, state = model(tokens())
    rows = torch.tensor([2, 0, 2])
    selected = model.select(state, rows)
    logits, _ = model(tokens()[rows, :3], selected)
    for place, row in enumerate(rows.tolist()):
        _, alone = model(tokens()[row : row + 1])
        expected, _ = model(tokens()[row : row + 1, :3], alone)
        torch.testing.assert_close(logits[place : place + 1], expected, rtol=1e-6, atol=1e-6)
    selected[0].zero_()
    assert state[0].abs().sum() > 0


def test_logits_are_the_head_of_the_hidden_states(model):
    x_BTD, state = model.hidden(tokens())
    logits, end = model(tokens())
    assert x_BTD.shape == (3, 12, D)
    assert torch.equal(F.linear(x_BTD, model.head.weight, model.head.bias), logits)
    assert all(torch.equal(a, b) for a, b in zip(state, end, strict=True))


def test_every_parameter_has_a_gradient(model):
    token_nll(model.train()(tokens())[0], tokens().roll(-1, 1)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["rnn", "irnn", "gru", "lstm", "one-hot", "zaremba"])
def test_one_batch_is_overfitted_to_below_0_05(name):
    torch.manual_seed(0)
    model = replace(VARIANTS[name], width=32).build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    batch = tokens(2, 9)
    for _ in range(250):
        loss = token_nll(model(batch[:, :-1])[0], batch[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


# -- first weights


def test_an_irnn_begins_with_identity_recurrence_no_biases_and_small_inputs():
    model = RNNConfig(vocab_size=V, layers=2, width=128, activation="relu", identity=True).build()
    for name, parameter in model.rnn.named_parameters():
        if "weight_hh" in name:
            assert torch.equal(parameter, torch.eye(128))
        elif "bias" in name:
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.001, rel=0.03)
            assert abs(parameter.mean().item()) < 1e-4


def test_the_gradient_goes_through_a_fresh_irnn_as_it_is():
    model = RNNConfig(vocab_size=V, layers=1, width=D, activation="relu", identity=True).build()
    start = torch.ones(1, 2, D, requires_grad=True)
    _, (end,) = model(tokens(2, 100), (start,))
    end.sum().backward()
    assert torch.equal(start.grad, torch.ones(1, 2, D))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [RNNConfig, GRUConfig, LSTMConfig])
def test_first_weights_have_their_stated_deviations(family, tied):
    model = family(vocab_size=2000, layers=2, width=100, tied=tied).build()
    assert (model.head.weight is model.token_embedding.weight) == tied
    for name, parameter in model.named_parameters():
        if "bias" in name:
            opened = family is LSTMConfig and "bias_ih" in name
            assert parameter.sum().item() == (100 if opened else 0)  # Nothing but a forget gate's hundred ones.
            continue
        bound = 100**-0.5 if name.startswith("rnn") else 0.1
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name


def test_every_parameter_of_zarembas_small_model_begins_uniform_within_a_tenth():
    small = {"vocab_size": 10_000, "layers": 2, "width": 200}
    model = LSTMConfig(**small, tied=False, init_range=0.1, forget_bias=0.0).build()
    # Two tables of 10,000 x 200; in each layer four gates with two matrices and, as in his code, two biases.
    assert model.parameter_counts()["total"] == 2 * 10_000 * 200 + 10_000 + 2 * 4 * (2 * 200 * 200 + 2 * 200)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.06), name


@pytest.mark.parametrize("init_range", [None, 0.1])
def test_the_forget_bias_is_added_to_the_forget_gate_alone(init_range):
    torch.manual_seed(0)
    shut = LSTMConfig(**SIZES, init_range=init_range, forget_bias=0.0).build()
    torch.manual_seed(0)
    opened = LSTMConfig(**SIZES, init_range=init_range, forget_bias=1.5).build()
    for (name, parameter), other in zip(opened.named_parameters(), shut.parameters(), strict=True):
        expected = torch.zeros_like(parameter)
        if "bias_ih" in name:
            expected[D : 2 * D] = 1.5
        torch.testing.assert_close(parameter - other, expected)


# -- inputs


def test_one_hot_vectors_equal_a_learned_embedding_of_the_same_matrix():
    torch.manual_seed(0)
    one_hot = VARIANTS["one-hot"].build()
    learned = RNNConfig(**SIZES, embedding_width=V, tied=False).build()
    learned.load_state_dict(one_hot.state_dict() | {"token_embedding.weight": torch.eye(V)})
    torch.testing.assert_close(one_hot(tokens())[0], learned(tokens())[0])
    # The product with a one-hot vector is a column of the first layer's input weights.
    looked_up = F.embedding(tokens(), one_hot.rnn.weight_ih_l0.T)
    torch.testing.assert_close(one_hot.token_embedding(tokens()) @ one_hot.rnn.weight_ih_l0.T, looked_up)


def test_one_hot_vectors_have_the_type_of_the_weights():
    assert VARIANTS["one-hot"].build().to(torch.bfloat16)(tokens())[0].dtype == torch.bfloat16


# -- dropout


def masks(model: RecurrentLanguageModel) -> list[Tensor]:
    """What each call of each dropout module kept of a pass over one token said 200 times: booleans_BTD."""
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Dropout | VariationalDropout):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output != 0))
    model.train()(torch.full((3, 200), 7))
    return seen


def test_a_variational_mask_is_the_same_at_all_times_and_another_for_each_row():
    torch.manual_seed(0)
    seen = masks(VARIANTS["variational"].build())
    assert len(seen) == 3  # On the embedding, between the two layers, before the head.
    for kept_BTD in seen:
        assert torch.equal(kept_BTD, kept_BTD[:, :1].expand_as(kept_BTD))
        assert 0 < kept_BTD.float().mean() < 1
        assert not torch.equal(kept_BTD[0], kept_BTD[1])


def test_an_ordinary_mask_is_drawn_at_each_time():
    torch.manual_seed(0)
    model = VARIANTS["dropout"].build()
    for kept_BTD in masks(model):
        share_BD = kept_BTD.float().mean(1)
        torch.testing.assert_close(share_BD, torch.full_like(share_BD, 0.6), atol=0.15, rtol=0)
    assert model.rnn.dropout == 0.4  # Between layers torch does it.


def test_variational_dropout_keeps_the_mean():
    torch.manual_seed(0)
    dropped = VariationalDropout(0.4)(torch.ones(500, 3, 100))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.6])
    assert dropped.mean().item() == pytest.approx(1, rel=0.02)


def test_without_training_variational_layers_equal_torchs_stack():
    torch.manual_seed(0)
    stacked, plain = VARIANTS["variational gru"].build().eval(), VARIANTS["gru"].build().eval()
    for name, parameter in plain.rnn.named_parameters():
        layer = stacked.rnn.layers[int(name[-1])]
        parameter.data = layer.get_parameter(name[:-1] + "0").data
    plain.head.load_state_dict(stacked.head.state_dict())
    torch.testing.assert_close(stacked(tokens()), plain(tokens()))


# -- arithmetic and refusals


def test_flops_are_six_times_the_weights_of_matrices_that_multiply():
    lstm = LSTMConfig(vocab_size=1000, layers=2, width=48).build()
    assert lstm.flops_per_token(64) == 6 * (2 * 4 * 2 * 48 * 48 + 48 * 1000)
    untied = GRUConfig(vocab_size=1000, layers=1, width=48, embedding_width=20, tied=False).build()
    assert untied.flops_per_token(64) == 6 * (3 * 48 * (20 + 48) + 48 * 1000)
    one_hot = RNNConfig(vocab_size=1000, layers=1, width=48, embedding="one-hot", tied=False).build()
    assert one_hot.flops_per_token(64) == 6 * (48 * (1000 + 48) + 48 * 1000)


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (LSTMConfig, {"layers": 0}, "layers is 0"),
        (LSTMConfig, {"dropout": 1.0}, "dropout is 1.0"),
        (GRUConfig, {"embedding_width": 8}, "embedding_width is 8, width 16: a tied head needs them equal"),
        (GRUConfig, {"embedding": "one-hot"}, "embedding is one-hot, with tied True"),
        (GRUConfig, {"embedding": "one-hot", "tied": False, "embedding_width": 16}, "embedding_width 16"),
        (GRUConfig, {"init_range": 0.0}, "init_range is 0.0"),
        (RNNConfig, {"identity": True}, "identity is true with activation tanh"),
        (RNNConfig, {"identity": True, "activation": "relu", "init_range": 0.1}, "init_range 0.1"),
    ],
)
def test_an_impossible_model_is_refused_with_the_value(config, settings, words):
    with pytest.raises(ValueError, match=words):
        config(**SIZES | settings)
