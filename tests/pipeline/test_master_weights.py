"""fp32 masters of bf16 weights, beside training in fp32 and beside bf16 without them."""

import copy

import pytest
import torch
from tiny_runs import GPT, losses, write_config
from torch import nn

from pipeline.master_weights import MasterWeights
from pipeline.optim import AdamW


def half_linear(value: float = 1.0) -> nn.Linear:
    layer = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.constant_(layer.weight, value)
    return layer


def step_with(layer: nn.Linear, optimizer: MasterWeights, gradient: float) -> None:
    optimizer.zero_grad()
    layer.weight.grad = torch.full_like(layer.weight, gradient)
    optimizer.take_gradients()
    optimizer.step()


def test_updates_too_small_for_bf16_add_up():
    layer = half_linear()
    optimizer = MasterWeights(torch.optim.SGD(layer.parameters(), lr=1.0))
    for _ in range(64):
        step_with(layer, optimizer, -(2.0**-11))
    assert torch.equal(layer.weight, torch.full_like(layer.weight, 1 + 2.0**-5))

    alone = half_linear()
    plain = torch.optim.SGD(alone.parameters(), lr=1.0)
    for _ in range(64):
        alone.weight.grad = torch.full_like(alone.weight, -(2.0**-11))
        plain.step()
    assert torch.equal(alone.weight, torch.ones_like(alone.weight))


def test_gradients_of_micro_batches_add_up_in_fp32():
    layer = half_linear()
    optimizer = MasterWeights(torch.optim.SGD(layer.parameters(), lr=1.0))
    for _ in range(512):
        # In bf16 the sum would stay at 256, where a step of 1 is lost.
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.take_gradients()
        assert layer.weight.grad is None
    torch.testing.assert_close(optimizer.master_of(layer.weight).grad, torch.full((4, 4), 512.0), rtol=0, atol=0)
    optimizer.zero_grad()
    assert optimizer.master_of(layer.weight).grad is None


def test_clipping_reaches_the_fp32_gradients():
    layer = half_linear()
    optimizer = MasterWeights(torch.optim.SGD(layer.parameters(), lr=1.0))
    layer.weight.grad = torch.full_like(layer.weight, 3.0)
    optimizer.take_gradients()
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    assert norm == 12.0
    optimizer.step()
    torch.testing.assert_close(optimizer.master_of(layer.weight), torch.full((4, 4), 0.75), rtol=1e-6, atol=0)


def test_masters_step_as_fp32_weights_do_under_the_same_gradients():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8).bfloat16()
    reference = nn.Linear(8, 8)
    reference.load_state_dict(layer.state_dict())
    config = AdamW(learning_rate=1e-2)
    optimizer, plain = MasterWeights(config.build(layer)), config.build(reference)
    for _ in range(20):
        for half, full in zip(layer.parameters(), reference.parameters(), strict=True):
            half.grad = torch.randn_like(half)
            full.grad = half.grad.float()
        optimizer.take_gradients()
        optimizer.step()
        plain.step()
        optimizer.zero_grad()
    for half, full in zip(layer.parameters(), reference.parameters(), strict=True):
        assert torch.equal(optimizer.master_of(half), full)
        assert torch.equal(half, full.bfloat16())


def test_a_saved_state_goes_on_as_if_it_had_not_been_saved():
    layers = [half_linear() for _ in range(2)]
    optimizers = [MasterWeights(torch.optim.AdamW(layer.parameters(), lr=1e-3)) for layer in layers]
    for _ in range(3):
        step_with(layers[0], optimizers[0], 0.5)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert torch.equal(layers[0].weight, layers[1].weight)
    for layer, optimizer in zip(layers, optimizers, strict=True):
        step_with(layer, optimizer, -0.5)
    masters = [optimizer.master_of(layer.weight) for layer, optimizer in zip(layers, optimizers, strict=True)]
    assert torch.equal(*masters)


@pytest.mark.parametrize("micro_batch", [16, 4], ids=["whole", "accumulated"])
def test_a_run_in_bf16_true_follows_the_one_in_fp32(micro_batch, tokens_folder, tmp_path):
    full, half = (
        losses(
            write_config(
                tmp_path / precision / "c.yaml", tokens_folder, GPT, trainer__precision=precision,
                data__micro_batch=micro_batch, model__optimizer={"learning_rate": 1e-3},
            )
        )
        for precision in ("32-true", "bf16-true")
    )  # fmt: skip
    assert half == pytest.approx(full, rel=5e-3)
    assert half[-1] < half[0] - 0.05
