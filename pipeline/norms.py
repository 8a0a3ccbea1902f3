"""Norms of gradients and weights by group of layers: where in a model training is calm, and where it is not."""

import re
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

# P parameters, G groups of layers


def layer_group(name: str) -> str:
    """The group of a parameter: its block or layer where these are numbered, else the module that it belongs to.

    `blocks.3.mlp.expand.weight` is of `blocks.3`, `rnn.weight_hh_l1` of `rnn.1`, `token_embedding.weight` of `token_embedding`.
    """
    module, _, own = name.rpartition(".")
    if numbered := re.match(r"(.*?\.\d+)(\.|$)", module):
        return numbered[1]
    layer = re.search(r"_l(\d+)(_reverse)?$", own)
    return f"{module}.{layer[1]}" if layer else module or name


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, norms_P, in fp32 at least, without waiting for the device."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, dtype=dtype))  # type: ignore[attr-defined]


def squares_by_group(names: Iterable[str], norms_P: Tensor) -> tuple[list[str], Tensor]:
    """The groups in the order of their first parameters, and the sum of squares in each, squares_G in double precision."""
    of_P = [layer_group(name) for name in names]
    groups = list(dict.fromkeys(of_P))
    index_P = torch.tensor([groups.index(group) for group in of_P], device=norms_P.device)
    return groups, norms_P.new_zeros(len(groups), dtype=torch.float64).index_add_(0, index_P, norms_P.double() ** 2)


def gradient_norms(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of the gradient of each parameter that has one, norms_P."""
    return tensor_norms([parameter.grad for parameter in parameters if parameter.grad is not None])


def clip_gradients(parameters: Collection[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; return the norm of each before that, norms_P.

    The same arithmetic as torch.nn.utils.clip_grad_norm_, which forms the norm of each too, but returns only that of all.
    """
    norms_P = gradient_norms(parameters)
    nn.utils.clip_grads_with_norm_(parameters, limit, torch.linalg.vector_norm(norms_P))
    return norms_P
