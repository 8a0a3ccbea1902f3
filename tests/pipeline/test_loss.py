"""The head's loss, taken chunk by chunk with its gradients, beside all logits at once and torch's cross-entropy."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.layers import head
from pipeline.layers.head import Head, Targets
from pipeline.loss import token_nll
from pipeline.models.base import NO_TOKEN
from pipeline.models.transformer import TransformerConfig

# B batch, T time, D width, V vocabulary

B, T, D, V = 3, 37, 16, 101
TERMS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "both": {"label_smoothing": 0.1, "z_loss": 0.01},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks in a small batch, the last one not full."""
    monkeypatch.setattr(head, "CHUNK_TOKENS", {"cpu": 16})
    monkeypatch.setattr(head, "CHUNK_LOGITS", 1)


def inputs(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = Head(D, V, bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    x_BTD = torch.randn(B, T, D, generator=generator)
    targets_BT = torch.randint(0, V, (B, T), generator=generator)
    targets_BT[0, 5:9] = targets_BT[2, 20:] = NO_TOKEN
    return layer.to(dtype), x_BTD.to(dtype).requires_grad_(), targets_BT


def whole_loss(layer: Head, x_BTD: Tensor, targets_BT: Tensor, label_smoothing=0.0, z_loss=0.0) -> Tensor:
    logits_BTV = layer(x_BTD).float() if x_BTD.dtype != torch.float64 else layer(x_BTD)
    likelihood = F.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    return likelihood + z_loss * logits_BTV.logsumexp(-1)[targets_BT != NO_TOKEN].square().sum()


def gradients(loss: Tensor, layer: Head, x_BTD: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss / 7, [x_BTD, *layer.parameters()]))


@pytest.mark.parametrize("bias", [False, True], ids=["weight", "weight and bias"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_the_loss_in_chunks_and_its_gradients_are_those_of_all_logits_at_once(terms, bias):
    layer, x_BTD, targets_BT = inputs(bias)
    scores = layer(x_BTD, Targets(targets_BT, **terms))
    double, exact_BTD, _ = inputs(bias, torch.float64)
    loss = whole_loss(double, exact_BTD, targets_BT, **terms)
    torch.testing.assert_close(scores.loss.double(), loss, rtol=1e-6, atol=0)
    for ours, exact in zip(gradients(scores.loss, layer, x_BTD), gradients(loss, double, exact_BTD), strict=True):
        assert (ours - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_in_bf16_the_loss_in_chunks_is_no_further_from_the_truth_than_all_logits_at_once(terms):
    double, exact_BTD, targets_BT = inputs(True, torch.float64)
    exact = gradients(whole_loss(double, exact_BTD, targets_BT, **terms), double, exact_BTD)
    layer, x_BTD, _ = inputs(True)
    with torch.autocast("cpu", torch.bfloat16):
        chunked = layer(x_BTD, Targets(targets_BT, **terms)).loss
        whole = whole_loss(layer, x_BTD, targets_BT, **terms)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=0)
    errors = [
        [float((ours - truth).norm() / truth.norm()) for ours, truth in zip(found, exact, strict=True)]
        for found in (gradients(chunked, layer, x_BTD), gradients(whole, layer, x_BTD))
    ]
    assert all(ours < 1.1 * theirs for ours, theirs in zip(*errors, strict=True)), errors


def test_each_tokens_loss_is_without_smoothing_z_loss_and_gradient_and_zero_without_a_target():
    layer, x_BTD, targets_BT = inputs(True)
    scores = layer(x_BTD, Targets(targets_BT, label_smoothing=0.1, z_loss=0.01))
    torch.testing.assert_close(scores.nll_BT, token_nll(layer(x_BTD), targets_BT).detach())
    assert not scores.nll_BT.requires_grad
    assert (scores.nll_BT[targets_BT == NO_TOKEN] == 0).all()
    assert scores.right_BT is None


def test_without_a_gradient_the_likeliest_token_is_compared_with_the_target():
    layer, x_BTD, targets_BT = inputs(False)
    likeliest_BT = layer(x_BTD).argmax(-1)
    targets_BT[1] = likeliest_BT[1]
    with torch.no_grad():
        scores = layer(x_BTD, Targets(targets_BT))
    assert torch.equal(scores.right_BT, likeliest_BT == targets_BT)
    assert scores.right_BT.sum() >= T
    torch.testing.assert_close(scores.nll_BT, token_nll(layer(x_BTD), targets_BT).detach())


def test_a_share_that_underflows_has_its_loss_to_the_last_digit():
    layer = Head(2, 3, bias=False)
    layer.weight.data = torch.tensor([[300.0, 0.0], [0.0, 0.0], [-300.0, 0.0]])
    x_BTD, targets_BT = torch.tensor([[[1.0, 0.0]]], requires_grad=True), torch.tensor([[2]])
    scores = layer(x_BTD, Targets(targets_BT))
    assert scores.loss.item() == 600.0
    [gradient_BTD] = torch.autograd.grad(scores.loss, x_BTD)
    assert gradient_BTD.tolist() == [[[600.0, 0.0]]]


def test_a_batch_without_any_target_has_no_loss_and_no_gradient():
    layer, x_BTD, targets_BT = inputs(True)
    scores = layer(x_BTD, Targets(torch.full_like(targets_BT, NO_TOKEN), label_smoothing=0.1, z_loss=0.1))
    assert scores.loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(scores.loss, layer, x_BTD))


def test_a_tied_table_gets_the_gradients_of_both_its_uses():
    model = TransformerConfig(vocab_size=V, context=T, layers=1, width=D, heads=2).build()
    tokens_BT = torch.randint(0, V, (B, T))
    targets_BT = torch.randint(0, V, (B, T))
    found = []
    for loss in (
        model(tokens_BT, None, Targets(targets_BT))[0].loss,
        token_nll(model(tokens_BT)[0], targets_BT).sum(),
    ):
        model.zero_grad()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


MEMORY = """
import sys, torch
from torch.nn import functional as F
from pipeline.layers.head import Targets
from data_prep.process_memory import peak_resident_bytes
from pipeline.models.transformer import TransformerConfig
torch.set_num_threads(1)
model = TransformerConfig(vocab_size=50257, context=256, layers=2, width=64, heads=2).build()
tokens = torch.randint(0, 50257, (8, 256))
before = peak_resident_bytes()
with torch.autocast("cpu", torch.bfloat16):
    if sys.argv[1] == "chunks":
        loss = model(tokens, None, Targets(tokens))[0].loss
    else:
        loss = F.cross_entropy(model(tokens)[0].flatten(0, 1).float(), tokens.flatten())
loss.backward()
print(peak_resident_bytes() - before)
"""


@pytest.mark.slow
def test_a_step_at_gpt2s_vocabulary_grows_by_less_than_half_of_what_one_with_all_logits_does():
    growth = {
        kind: int(
            subprocess.run([sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, check=True).stdout
        )
        for kind in ("chunks", "whole")
    }
    assert growth["chunks"] < growth["whole"] / 2, growth
