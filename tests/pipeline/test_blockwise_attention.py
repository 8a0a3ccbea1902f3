"""Attention by blocks of queries, beside torch's kernel in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.layers.attention import causal_attention
from pipeline.layers.blockwise import QUERIES, BlockwiseAttention, attend_in_blocks

# B batch, H heads, G heads of keys and values, T time, K head width


def inputs(length: int, kv_heads: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, heads, length, 8, generator=generator) for heads in (4, kv_heads, kv_heads)]


def with_gradients(attend, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    attended = attend(*leaves)
    weights = torch.randn(attended.shape, generator=torch.Generator().manual_seed(0)).to(attended.dtype)
    return [attended.detach(), *torch.autograd.grad((attended * weights).sum(), leaves)]


def exact(tensors: list[Tensor]) -> list[Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    return with_gradients(attend, [tensor.double() for tensor in tensors])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 7, QUERIES, QUERIES + 1, 2 * QUERIES + 30])
def test_blocks_attend_as_the_formula_does(length, kv_heads):
    tensors = inputs(length, kv_heads)
    for ours, truth in zip(with_gradients(attend_in_blocks, tensors), exact(tensors), strict=True):
        assert (ours - truth).norm() <= 1e-6 * truth.norm() + 1e-6


def test_in_bf16_on_a_cpu_attention_goes_by_blocks_and_stays_within_a_hundredth():
    halves = [tensor.bfloat16() for tensor in inputs(300)]
    found = with_gradients(causal_attention, halves)
    query, key, value = (half.clone().requires_grad_() for half in halves)
    attended = causal_attention(query, key, value)
    assert attended.grad_fn is not None
    assert BlockwiseAttention.__name__ in str(attended.grad_fn.next_functions[0][0])
    for ours, truth in zip(found, exact(halves), strict=True):
        assert (ours.double() - truth).norm() < 0.01 * truth.norm()
