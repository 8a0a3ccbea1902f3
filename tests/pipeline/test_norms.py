"""Norms by group of layers beside torch's own norms, parameter by parameter."""

import math

import pytest
import torch

from pipeline.models.recurrent import GRUConfig, LSTMConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.norms import clip_gradients, layer_group, squares_by_group, tensor_norms

GPT = TransformerConfig(vocab_size=64, context=8, layers=2, width=16, heads=2, tied=False)


def with_gradients(config) -> torch.nn.Module:
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("token_embedding.weight", "token_embedding"),
        ("blocks.3.mlp.expand.weight", "blocks.3"),
        ("body.blocks.11.attention.output.bias", "body.blocks.11"),
        ("norm.weight", "norm"),
        ("head.weight", "head"),
        ("rnn.weight_hh_l1", "rnn.1"),
        ("encoder.rnn.bias_ih_l0_reverse", "encoder.rnn.0"),
        ("rnn.layers.0.weight_ih_l0", "rnn.layers.0"),
        ("scale", "scale"),
    ],
)
def test_a_parameter_belongs_to_its_numbered_layer_or_else_to_its_module(name, group):
    assert layer_group(name) == group


@pytest.mark.parametrize(
    "config",
    [
        GPT,
        LSTMConfig(vocab_size=64, layers=2, width=16),
        GRUConfig(vocab_size=64, layers=1, width=16, variational=True),
    ],
    ids=["gpt", "lstm", "variational gru"],
)
def test_the_norm_of_a_group_is_that_of_all_its_numbers_together(config):
    model = with_gradients(config)
    names, gradients = zip(*((name, p.grad) for name, p in model.named_parameters()), strict=True)
    groups, squares = squares_by_group(names, tensor_norms(gradients))
    assert len(groups) == len(set(groups))
    for group, square in zip(groups, squares.tolist(), strict=True):
        numbers = torch.cat(
            [g.flatten() for name, g in zip(names, gradients, strict=True) if layer_group(name) == group]
        )
        assert math.sqrt(square) == pytest.approx(float(numbers.norm()), rel=1e-6)
    everything = torch.cat([gradient.flatten() for gradient in gradients])
    assert float(squares.sum().sqrt()) == pytest.approx(float(everything.norm()), rel=1e-6)


@pytest.mark.parametrize("limit", [0.5, 1e6, math.inf])
def test_clipping_is_torchs_bit_for_bit(limit):
    ours, theirs = with_gradients(GPT), with_gradients(GPT)
    norms = clip_gradients([*ours.parameters()], limit)
    total = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert torch.equal(torch.linalg.vector_norm(norms), total)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
