"""Optimizers beside torch's own, and which parameters each of Muon's parts moves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from data_prep.files import InputError
from pipeline.distributed import ZeRO
from pipeline.models.classifier import ClassifierConfig
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.muon import divided, orthogonalised
from pipeline.optim import SGD, AdamW, Muon

GPT = TransformerConfig(vocab_size=64, context=8, layers=2, width=16, heads=2, tied=False)


def trained(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 5) -> list[torch.Tensor]:
    """The weights after some steps on fixed random gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def fresh(config=GPT) -> nn.Module:
    torch.manual_seed(0)
    return config.build()


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_muon_moves_matrices_as_torchs_muon_and_the_rest_as_torchs_adamw_bit_for_bit(scale):
    ours = fresh()
    got = trained(ours, [Muon(learning_rate=1e-2, weight_decay=0.3, adamw_scale=scale).build(ours)])
    theirs = fresh()
    hidden, rest = divided(theirs)
    adamw = {"lr": 1e-2 * scale, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    want = trained(
        theirs,
        [
            torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([p for p in rest if p.dim() == 2], weight_decay=0.3, **adamw),
            torch.optim.AdamW([p for p in rest if p.dim() == 1], weight_decay=0.0, **adamw),
        ],
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_muon_going_on_from_its_saved_state_equals_muon_that_never_stopped():
    whole = fresh()
    want = trained(whole, [Muon().build(whole)], steps=6)
    model = fresh()
    generator = torch.Generator().manual_seed(1)
    optimizer = Muon().build(model)
    for step in range(6):
        if step == 3:
            saved = optimizer.state_dict()
            optimizer = Muon(learning_rate=1.0).build(model)
            optimizer.load_state_dict(saved)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), want, strict=True))


def test_what_muon_keeps_has_the_shape_of_its_parameter():
    model = fresh()
    optimizer = Muon().build(model)
    trained(model, [optimizer], steps=1)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        numbers = {key for key, value in state.items() if value.dim() == 0}
        assert numbers <= {"step"}
        assert all(value.shape == parameter.shape for key, value in state.items() if key not in numbers)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (48, 48)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_has_singular_values_near_1(shape):
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    s = s.clamp(min=0.1 * s[0])
    result = orthogonalised(u * s @ vt, 5).float()
    rotated = u.T @ result @ vt.T
    assert rotated.diagonal().min() > 0.6
    assert rotated.diagonal().max() < 1.3
    assert (rotated - rotated.diag().diag()).abs().max() < 0.05


@pytest.mark.parametrize(
    ("config", "elsewhere"),
    [
        (GPT, {"token_embedding.weight", "position_embedding.weight", "head.weight"}),
        (TransformerConfig(vocab_size=64, context=8, layers=1, width=16, heads=2), {"token_embedding.weight", "position_embedding.weight"}),
        (LSTMConfig(vocab_size=64, layers=1, width=16), {"token_embedding.weight"}),
        (
            ClassifierConfig(vocab_size=64, classes=2, body=GPT),
            {"body.token_embedding.weight", "body.position_embedding.weight", "head.weight"},
        ),
    ],
    ids=["gpt", "tied gpt", "lstm", "classifier"],
)  # fmt: skip
def test_muon_leaves_tables_heads_and_vectors_to_adamw(config, elsewhere):
    model = config.build()
    hidden, rest = divided(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in rest if p.dim() == 2} == elsewhere
    assert {*map(names.get, hidden)} == {n for n, p in model.named_parameters() if p.dim() == 2} - elsewhere
    assert len(hidden) + len(rest) == len(names)


def test_adamw_is_the_fused_one_and_decays_matrices_only():
    optimizer = AdamW(weight_decay=0.2).build(fresh())
    assert all(group["fused"] for group in optimizer.param_groups)
    matrices, vectors = optimizer.param_groups
    assert matrices["weight_decay"] == 0.2
    assert vectors["weight_decay"] == 0
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}


def test_only_muon_needs_whole_matrices():
    assert [kind.needs_whole_matrices for kind in (AdamW, SGD, Muon)] == [False, False, True]


def test_zero_refuses_muon_in_one_sentence():
    strategy: Any = ZeRO(2)
    strategy._lightning_module = SimpleNamespace(optimizer=Muon())
    with pytest.raises(InputError, match="Muon steps whole matrices, which ZeRO cuts"):
        strategy.setup(SimpleNamespace(gradient_clip_val=1.0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0: it must be positive"),
        ({"momentum": 1.0}, "momentum is 1.0: it must lie in"),
        ({"newton_schulz_steps": 0}, "newton_schulz_steps is 0: it must be at least 1"),
        ({"adamw_scale": -1.0}, "adamw_scale is -1.0: it must be positive"),
    ],
)
def test_settings_of_muon_out_of_range_are_refused_by_name(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Muon(**settings)
