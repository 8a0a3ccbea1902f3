"""The classification head on any causal body: what it reads, what it ignores, that it learns, what it costs."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.base import NO_TOKEN, ModelConfig
from pipeline.models.classifier import Classifier, ClassifierConfig
from pipeline.models.recurrent import GRUConfig, LSTMConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

# B batch, T time, D width, C classes

V = 40
PRESETS = Path(__file__).parents[2] / "configs" / "model"
BODIES = {
    "transformer": TransformerConfig(vocab_size=V, context=16, layers=2, width=32, heads=4),
    "untied transformer": TransformerConfig(vocab_size=V, context=16, layers=2, width=32, heads=4, tied=False),
    "lstm": LSTMConfig(vocab_size=V, layers=2, width=32),
    "untied gru": GRUConfig(vocab_size=V, layers=1, width=32, tied=False),
}


@pytest.fixture(params=BODIES)
def body(request) -> ModelConfig:
    torch.manual_seed(0)
    return BODIES[request.param]


def classifier(body: ModelConfig, classes: int = 3, **settings) -> Classifier:
    return ClassifierConfig(vocab_size=V, body=body, classes=classes, **settings).build()


def tokens(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randint(0, V, (rows, columns), generator=torch.Generator().manual_seed(seed))


def test_logits_are_the_head_on_the_hidden_states_of_the_language_model(body):
    model, whole, tokens_BT = classifier(body).eval(), body.build().eval(), tokens(2, 9)
    missing, unexpected = whole.load_state_dict(model.body.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} <= {"head"}
    assert not unexpected
    x_BTD, _ = whole.hidden(tokens_BT)
    # The hidden states are those from which the body predicts tokens.
    torch.testing.assert_close(whole.head(x_BTD), whole(tokens_BT)[0])
    logits_BTC, _ = model(tokens_BT)
    assert logits_BTC.shape == (2, 9, 3)
    by_hand_BC = x_BTD[:, -1] @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(logits_BTC[:, -1], by_hand_BC, rtol=1e-5, atol=1e-6)


def test_padding_changes_no_logit_up_to_the_last_real_token(body):
    model, tokens_BT = classifier(body).eval(), tokens(2, 9)
    padded_BT = F.pad(tokens_BT, (0, 5), value=7)
    torch.testing.assert_close(model(padded_BT)[0][:, :9], model(tokens_BT)[0], rtol=1e-5, atol=1e-6)


def test_a_text_can_be_read_piece_by_piece(body):
    model, tokens_BT, rows_B = classifier(body).eval(), tokens(3, 12), torch.tensor([2, 0])
    whole_BTC, _ = model(tokens_BT)
    first_BTC, state = model(tokens_BT[:, :5], model.init_state(3, 12))
    second_BTC, _ = model(tokens_BT[rows_B, 5:], model.select(state, rows_B))
    torch.testing.assert_close(first_BTC, whole_BTC[:, :5], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second_BTC, whole_BTC[rows_B, 5:], rtol=1e-5, atol=1e-6)


def test_every_parameter_has_a_gradient(body):
    model = classifier(body)
    model(tokens(2, 9))[0].sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    whole = sum(p.numel() for p in body.build().parameters())
    heads = {"untied transformer": V * 32, "untied gru": V * 32 + V, "lstm": V, "transformer": 0}
    left_out = next(heads[name] for name, config in BODIES.items() if config == body)
    assert sum(p.numel() for p in model.parameters()) == whole - left_out + 3 * 32 + 3


def test_one_batch_is_learnt_by_heart(body):
    model, tokens_BT = classifier(body, dropout=0.1), tokens(8, 10)
    # Texts of different lengths; the class stands at the last real token and has to do with nothing else.
    targets_BT = torch.full((8, 10), NO_TOKEN)
    for row in range(8):
        targets_BT[row, 2 + row] = row % 3
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = F.cross_entropy(model(tokens_BT)[0].flatten(0, 1), targets_BT.flatten(), ignore_index=NO_TOKEN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted_BT = model.eval()(tokens_BT)[0].argmax(-1)
    counted_BT = targets_BT != NO_TOKEN
    assert (predicted_BT == targets_BT)[counted_BT].all()
    assert loss.item() < 0.1


def test_only_the_heads_matrices_make_the_cost_differ_from_the_bodys(body):
    difference = classifier(body).flops_per_token(16) - body.build().flops_per_token(16)
    assert difference == 6 * 32 * (3 - V)


def test_attention_maps_are_the_bodys():
    model = classifier(BODIES["transformer"]).eval()
    maps = model.attention_maps(tokens(2, 9))["self"]
    assert [weights.shape for weights in maps] == [(2, 4, 9, 9)] * 2
    assert (model.context, model.carries_state, model.reads_source) == (16, False, False)


def test_the_new_head_starts_as_gpt1_starts_its_weights():
    torch.manual_seed(0)
    wide = TransformerConfig(vocab_size=V, context=8, layers=1, width=256, heads=4)
    head = classifier(wide, classes=40).head
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert (head.bias == 0).all()


def test_the_preset_builds():
    settings = yaml.safe_load((PRESETS / "classifier_transformer_tiny.yaml").read_text())["model"]["architecture"]
    body = settings["init_args"].pop("body")
    assert (settings["class_path"], body["class_path"]) == ("ClassifierConfig", "TransformerConfig")
    with torch.device("meta"):
        model = ClassifierConfig(body=TransformerConfig(**body["init_args"]), **settings["init_args"]).build()
    assert model(torch.zeros(1, 5, dtype=torch.int64, device="meta"))[0].shape == (1, 5, 2)


PAIRS = {"encoder_layers": 1, "decoder_layers": 1, "width": 8, "heads": 2, "context": 8}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": 1}, "classes is 1: there must be at least 2"),
        ({"vocab_size": 50}, "vocab_size is 50, that of the body 40"),
        ({"dropout": 2.0}, "dropout is 2.0"),
        (
            {"body": TransformerSeq2SeqConfig(vocab_size=V, **PAIRS)},
            "a seq2seq_transformer, which hands over no hidden",
        ),
        ({"body": ClassifierConfig(vocab_size=V, body=BODIES["lstm"], classes=2)}, "a classifier, which hands over no"),
    ],
)
def test_an_impossible_classifier_is_refused_with_the_value(settings, words):
    with pytest.raises(ValueError, match=words):
        ClassifierConfig(**{"vocab_size": V, "body": BODIES["transformer"], "classes": 2} | settings)
