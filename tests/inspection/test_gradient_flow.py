"""Gradient norms against Jacobians, differences and cases whose answer is known."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.files import InputError
from pipeline.inspection.gradient_flow import gradient_norms, has_gradient_flow, mean_log10, require_distance
from pipeline.models.base import LanguageModel, ModelConfig
from pipeline.models.recurrent import GRUConfig, LSTMConfig, RNNConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

VOCABULARY = 11
SMALL = {"vocab_size": VOCABULARY, "layers": 2, "width": 6}


def built(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    return config.build().double().eval()


def some_tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def recurrent_weight(model: LanguageModel) -> torch.nn.Parameter:
    [weight] = [parameter for name, parameter in model.named_parameters() if "weight_hh" in name]
    return weight


def test_the_gradient_of_an_identity_rnn_whose_units_are_all_active_is_constant() -> None:
    model = built(RNNConfig(vocab_size=VOCABULARY, layers=1, width=6, activation="relu", identity=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_ih" in name:
                parameter.fill_(1.0)
    norms_BK = gradient_norms(model, some_tokens(3, 42))["h"]
    assert norms_BK.shape == (3, 41)
    torch.testing.assert_close(norms_BK, norms_BK[:, :1].expand(-1, 41))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_gradient_of_a_tanh_rnn_is_the_product_of_its_jacobians(scale: float) -> None:
    """h_t = tanh(W h_{t-1} + ...), so d h_t / d h_{t-1} = diag(1 - h_t^2) W, multiplied up by hand."""
    model = built(RNNConfig(vocab_size=VOCABULARY, layers=1, width=6))
    weight_DD = recurrent_weight(model)
    with torch.no_grad():
        weight_DD.copy_(scale * torch.linalg.qr(weight_DD)[0])
    tokens_BT = some_tokens(1, 14)
    states, state = [], None
    for token_B1 in tokens_BT[:, :-1].split(1, dim=1):
        logits_B1V, state = model(token_B1, state)
        states.append(state[0][0, 0].detach())
    error_V = logits_B1V[0, 0].softmax(-1) - F.one_hot(tokens_BT[0, -1], VOCABULARY)
    gradient_D = error_V @ model.get_submodule("head").weight
    expected = [gradient_D.norm()]
    for h_D in reversed(states[1:]):
        gradient_D = (gradient_D * (1 - h_D**2)) @ weight_DD
        expected.append(gradient_D.norm())
    torch.testing.assert_close(gradient_norms(model, tokens_BT)["h"][0], torch.stack(expected).detach())


@pytest.mark.parametrize("variational", [False, True], ids=["ordinary", "variational"])
@pytest.mark.parametrize("config", [RNNConfig, GRUConfig, LSTMConfig])
def test_the_gradient_of_every_cell_equals_central_differences(config: type, variational: bool) -> None:
    model = built(config(**SMALL, variational=variational))
    tokens_BT = some_tokens(2, 9)
    norms = gradient_norms(model, tokens_BT)
    for back in (1, 3, 6):
        read = tokens_BT.shape[1] - 1 - back
        with torch.no_grad():
            _, state = model(tokens_BT[:, :read])

            def loss_B(state: tuple[Tensor, ...], read: int = read) -> Tensor:
                logits_BTV, _ = model(tokens_BT[:, read:-1], state)
                return F.cross_entropy(logits_BTV[:, -1], tokens_BT[:, -1], reduction="none")

            squared = [differences(loss_B, state, part) for part in range(len(state))]
        torch.testing.assert_close(norms["h"][:, back], squared[0].sqrt(), rtol=1e-5, atol=1e-10)
        if config is LSTMConfig:
            torch.testing.assert_close(norms["h and c"][:, back], sum(squared).sqrt(), rtol=1e-5, atol=1e-10)


def differences(loss_B, state: tuple[Tensor, ...], part: int, step: float = 1e-5) -> Tensor:
    """The squared norm of d loss / d state[part], one coordinate at a time, for each sample."""
    squared = torch.zeros(state[part].shape[1], dtype=torch.float64)
    for layer in range(state[part].shape[0]):
        for unit in range(state[part].shape[2]):
            sides = []
            for side in (step, -step):
                moved = [tensor.clone() for tensor in state]
                moved[part][layer, :, unit] += side
                sides.append(loss_B(tuple(moved)))
            squared += ((sides[0] - sides[1]) / (2 * step)) ** 2
    return squared


VARIANTS = {
    "gpt2": {},
    "gpt1": {"norm_order": "post"},
    "llama": {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False, "kv_heads": 1},
    "falcon": {"parallel": True, "shared_norm": True, "positions": "rotary"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_a_transformer_equals_central_differences(variant: str) -> None:
    config = TransformerConfig(vocab_size=VOCABULARY, context=8, layers=2, width=8, heads=2, **VARIANTS[variant])
    model = built(config)
    tokens_BT = some_tokens(2, 7)
    norms_BK = gradient_norms(model, tokens_BT)["residual stream"]
    blocks, step = model.get_submodule("blocks"), 1e-5
    for back in (0, 2, 5):
        squared = torch.zeros(2, dtype=torch.float64)
        for block in blocks.children():
            for unit in range(8):
                sides = []
                for side in (step, -step):
                    delta_TD = torch.zeros(6, 8, dtype=torch.float64)
                    delta_TD[5 - back, unit] = side
                    handle = block.register_forward_pre_hook(
                        lambda _, read, delta_TD=delta_TD: (read[0] + delta_TD, *read[1:])
                    )
                    with torch.no_grad():
                        logits_BTV, _ = model(tokens_BT[:, :-1])
                    handle.remove()
                    sides.append(F.cross_entropy(logits_BTV[:, -1], tokens_BT[:, -1], reduction="none"))
                squared += ((sides[0] - sides[1]) / (2 * step)) ** 2
        torch.testing.assert_close(norms_BK[:, back], squared.sqrt(), rtol=1e-5, atol=1e-10)


def test_no_gradient_comes_from_outside_of_a_band() -> None:
    config = TransformerConfig(vocab_size=VOCABULARY, context=16, layers=2, width=8, heads=2, band=3, band_every=1)
    norms_BK = gradient_norms(built(config), some_tokens(2, 12))["residual stream"]
    # Two layers that each see themselves and two tokens before reach four tokens back.
    assert (norms_BK[:, :5] > 0).all()
    assert (norms_BK[:, 5:] == 0).all()
    assert [value is None for value in mean_log10(norms_BK)] == [False] * 5 + [True] * 6


def test_the_mean_is_of_logarithms_and_of_samples_that_have_a_gradient() -> None:
    norms_BK = torch.tensor([[1.0, 1e-2, 0.0], [1e4, 0.0, 0.0]], dtype=torch.float64)
    assert mean_log10(norms_BK) == [pytest.approx(2.0), pytest.approx(-2.0), None]


def test_measuring_leaves_no_gradient_and_no_hook_behind() -> None:
    model = built(LSTMConfig(**SMALL))
    gradient_norms(model, some_tokens(1, 5))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_models_with_one_stream_of_states_have_a_gradient_flow() -> None:
    assert has_gradient_flow(built(GRUConfig(**SMALL)))
    assert not has_gradient_flow(built(RecurrentSeq2SeqConfig(**SMALL, cell="gru")))


def test_a_distance_beyond_the_context_is_refused_with_both_numbers() -> None:
    model = built(TransformerConfig(vocab_size=VOCABULARY, context=8, layers=1, width=8, heads=2))
    require_distance(model, "gpt", 7)
    with pytest.raises(InputError, match="takes 9 tokens, but the context of gpt is 8: give --distance 7 or less"):
        require_distance(model, "gpt", 8)
