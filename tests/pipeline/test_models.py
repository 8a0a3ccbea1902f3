"""Every family: the first loss, causality, cached decoding, initialisation, one batch learnt by heart."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import budget
from pipeline.loss import token_nll
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.optim import AdamW

FAMILIES = {
    "transformer": TransformerConfig(vocab_size=1000, context=24, layers=3, width=48, heads=4),
    "lstm": LSTMConfig(vocab_size=1000, layers=2, width=48),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return FAMILIES[request.param].build().eval()


def tokens(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(0, 1000, (rows, columns), generator=torch.Generator().manual_seed(1))


def test_the_untrained_loss_is_ln_v_within_2_percent(model):
    batch = tokens(16, 25)
    loss = token_nll(model(batch[:, :-1])[0], batch[:, 1:]).mean().item()
    assert loss == pytest.approx(math.log(1000), rel=0.02)


def test_a_future_token_never_changes_a_past_logit(model):
    batch = tokens(2, 24)
    before, _ = model(batch)
    batch[:, 15] = (batch[:, 15] + 1) % 1000
    after, _ = model(batch)
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.equal(before[:, 15:], after[:, 15:])


@pytest.mark.parametrize("cuts", [[1] * 24, [10, 1, 1, 12], [23, 1]], ids=["by one", "uneven", "prompt and one"])
def test_cached_decoding_equals_full_forward(model, cuts):
    batch = tokens(3, 24)
    whole, _ = model(batch)
    state, pieces = model.init_state(3, 24), []
    for piece in batch.split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-6)


def test_one_batch_is_overfitted_to_below_0_05(model):
    batch = tokens(2, 17)
    optimizer = AdamW(learning_rate=1e-2, weight_decay=0.0).build(model.train())
    for _ in range(600):
        loss = token_nll(model(batch[:, :-1])[0], batch[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_gpt2_weights_start_as_released():
    model = TransformerConfig(vocab_size=5000, context=512, layers=4, width=128, heads=4).build()
    expected = {
        "token_embedding.weight": 0.02,
        "position_embedding.weight": 0.01,
        "blocks.1.attention.query_key_value.weight": 0.02,
        "blocks.1.mlp.expand.weight": 0.02,
        "blocks.1.attention.output.weight": 0.02 / math.sqrt(8),
        "blocks.1.mlp.output.weight": 0.02 / math.sqrt(8),
    }
    parameters = dict(model.named_parameters())
    for name, deviation in expected.items():
        assert parameters[name].std().item() == pytest.approx(deviation, rel=0.03), name
    assert all((p == 0).all() for name, p in parameters.items() if name.endswith("bias"))
    assert model.head.weight is model.token_embedding.weight


def test_gpt2_small_has_its_published_size():
    with torch.device("meta"):
        model = TransformerConfig(vocab_size=50257, context=1024, layers=12, width=768, heads=12).build()
    assert model.parameter_counts()["total"] == 124_439_808
    assert model.flops_per_token(1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_attention_equals_the_formula_of_the_paper():
    config = TransformerConfig(vocab_size=100, context=16, layers=1, width=32, heads=4)
    attention = config.build().blocks[0].attention.double()
    x = torch.randn(2, 16, 32, dtype=torch.float64)
    query, key, value = attention.query_key_value(x).split(32, dim=2)
    heads = []
    for h in range(4):
        part = slice(8 * h, 8 * h + 8)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ value[..., part])
    torch.testing.assert_close(attention(x), attention.output(torch.cat(heads, 2)))


def test_the_lstm_equals_its_equations_written_by_hand():
    model = LSTMConfig(vocab_size=50, layers=1, width=8).build().double()
    batch = torch.randint(0, 50, (2, 6))
    weights = dict(model.rnn.named_parameters())
    h = c = torch.zeros(2, 8, dtype=torch.float64)
    outputs = []
    for x in model.token_embedding(batch).unbind(1):
        gates = (
            x @ weights["weight_ih_l0"].T
            + weights["bias_ih_l0"]
            + h @ weights["weight_hh_l0"].T
            + weights["bias_hh_l0"]
        )
        i, f, g, o = gates.split(8, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h @ model.token_embedding.weight.T + model.head.bias)
    torch.testing.assert_close(model(batch)[0], torch.stack(outputs, 1))


def test_ignored_targets_change_no_loss():
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    targets[1, 2:] = -100
    nll = token_nll(logits, targets)
    assert (nll[1, 2:] == 0).all()
    assert nll.sum().item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    )


def test_only_matrices_decay():
    model = FAMILIES["transformer"].build()
    decayed, kept = AdamW(weight_decay=0.1).build(model).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert all(p.dim() >= 2 for p in decayed["params"])
    gains_and_biases = sum(p.numel() for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters())
    assert sum(p.numel() for p in kept["params"]) > gains_and_biases
    together = sum(p.numel() for group in (decayed, kept) for p in group["params"])
    assert together == sum(p.numel() for p in model.parameters())


def test_gpt3_small_needs_the_papers_flops():
    # Table D.1: 125M parameters and 300B tokens are 2.25e20 FLOPs, attention left out.
    assert budget.dense_flops_per_token(125_000_000) * 300e9 == pytest.approx(2.25e20)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 50}, "not divisible"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_an_impossible_model_is_refused_with_the_value(settings, words):
    good = {"vocab_size": 10, "context": 8, "layers": 1, "width": 8, "heads": 4}
    with pytest.raises(ValueError, match=words):
        TransformerConfig(**good | settings)
