"""How much of the gradient of one step's loss reaches the hidden states before it: what makes a past learnable or not.

Pascanu et al. 2013 (section 2) explain with these norms why recurrent networks forget; gates and attention are the remedies.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.files import InputError
from pipeline.models.base import LanguageModel, ModelConfig
from pipeline.models.recurrent import GRUConfig, LSTMConfig, RNNConfig
from pipeline.models.transformer import Transformer, TransformerConfig

# B batch, T time, K distances 0 ... K - 1 back from the last step, L layers, D width

RESIDUAL = "residual stream"
"""What a transformer keeps of a token between its blocks."""


def has_gradient_flow(model: LanguageModel) -> bool:
    """Whether the model has a hidden state at each step of one stream of tokens: recurrent or a decoder-only transformer."""
    return model.carries_state or isinstance(model, Transformer)


def kind(config: ModelConfig) -> str:
    """What a curve is of, as the lectures call it: the ReLU/identity RNN is a kind of its own."""
    return "ReLU/identity RNN" if getattr(config, "identity", False) else config.family


def fresh_kinds(vocab_size: int, width: int, context: int) -> dict[str, ModelConfig]:
    """The five kinds that the lectures compare, by their names, at one width: a recurrent layer each, and two blocks."""
    recurrent: dict[str, Any] = {"vocab_size": vocab_size, "layers": 1, "width": width}
    # Heads of 64 features, and where the width is no multiple of that, one.
    heads = width // 64 if width % 64 == 0 else 1
    configs = (
        RNNConfig(**recurrent),
        RNNConfig(**recurrent, activation="relu", identity=True),
        GRUConfig(**recurrent),
        LSTMConfig(**recurrent),
        TransformerConfig(vocab_size=vocab_size, context=context, layers=2, width=width, heads=heads),
    )
    return {kind(config): config for config in configs}


def gradient_norms(model: LanguageModel, tokens_BT: Tensor) -> dict[str, Tensor]:
    """The norm of d loss / d state k steps before the last, where the loss is that of the last token given all others.

    The norm is over all layers. A recurrent state is what enters the next step; at k = 0 no step follows, and it is the vector
    that the output head reads. A transformer's state is the residual stream that enters each block at that position.

    Args:
        model: in evaluation mode; in double precision, or else gradients that vanish fall below the smallest number.
        tokens_BT: at least three tokens a row.

    Returns:
        norms_BK with K = T - 1, by state: "h", for an LSTM also "h and c", or the residual stream.
    """
    measure = recurrent_norms if model.carries_state else residual_norms
    return measure(model, tokens_BT[:, :-1], tokens_BT[:, -1])


def recurrent_norms(model: LanguageModel, tokens_BT: Tensor, target_B: Tensor) -> dict[str, Tensor]:
    states, state = [], None
    with inputs_of([model.get_submodule("head")]) as read:
        for token_B1 in tokens_BT.split(1, dim=1):
            logits_B1V, state = model(token_B1, state)
            states.append(state)
    loss = F.cross_entropy(logits_B1V[:, -1], target_B, reduction="sum")
    # The loss reads the last step through the head alone, so what it would have handed on has no gradient.
    earlier = [part_LBD for state in reversed(states[:-1]) for part_LBD in state]
    last_B1D, *gradients = torch.autograd.grad(loss, [read[-1], *earlier])
    now_B1 = last_B1D.pow(2).sum((1, 2))[:, None]
    parts = len(states[0])
    squared = [
        torch.cat([now_B1, torch.stack([g_LBD.pow(2).sum((0, 2)) for g_LBD in gradients[part::parts]], 1)], 1)
        for part in range(parts)
    ]
    if parts == 1:
        return {"h": squared[0].sqrt()}
    hidden_BK, cell_BK = squared
    # The head reads h, so the cell has no share at k = 0.
    cell_BK[:, 0] = 0
    return {"h and c": (hidden_BK + cell_BK).sqrt(), "h": hidden_BK.sqrt()}


def residual_norms(model: LanguageModel, tokens_BT: Tensor, target_B: Tensor) -> dict[str, Tensor]:
    assert isinstance(model, Transformer)
    with inputs_of(model.blocks) as entering:
        logits_BTV, _ = model(tokens_BT)
    loss = F.cross_entropy(logits_BTV[:, -1], target_B, reduction="sum")
    gradients = torch.autograd.grad(loss, entering)
    squared_BT = torch.stack([g_BTD.pow(2).sum(-1) for g_BTD in gradients]).sum(0)
    return {RESIDUAL: squared_BT.flip(1).sqrt()}


@contextmanager
def inputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """The list of what enters these modules, in the order of their calls, while the block runs."""
    entering: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, arguments: entering.append(arguments[0])) for module in modules
    ]
    try:
        yield entering
    finally:
        for handle in handles:
            handle.remove()


def mean_log10(norms_BK: Tensor) -> list[float | None]:
    """The mean of log10 over the samples at each distance; samples without any gradient there do not count, and where none
    has one (a token outside of every band or document) it is None."""
    reached_BK = norms_BK > 0
    total_K = torch.where(reached_BK, norms_BK, 1.0).log10().sum(0)
    counts = reached_BK.sum(0).tolist()
    return [value / count if count else None for value, count in zip(total_K.tolist(), counts, strict=True)]


def require_distance(model: LanguageModel, name: str, distance: int) -> None:
    """Raise InputError if the model cannot look back so far."""
    if model.context is not None and distance + 1 > model.context:
        raise InputError(
            f"A distance of {distance} takes {distance + 1} tokens, but the context of {name} is {model.context}: "
            f"give --distance {model.context - 1} or less"
        )
