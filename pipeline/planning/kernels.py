"""What a real device has in the place of torch's own code on the meta device: autocast, kernels that keep less than the formula they
compute (attention, recurrent layers, dropout), chunks of the head's loss, and activation checkpointing.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pipeline.layers import head
from pipeline.layers.head import Head, LinearCrossEntropy, Scores, Targets
from pipeline.models.base import LanguageModel
from pipeline.planning.ledger import META, Ledger
from pipeline.planning.shapes import FILLING

# B batch, T time, S source time, H heads, K head width, D width


class Device(NamedTuple):
    """What decides which kernels a step has."""

    kind: str
    """cpu or cuda."""
    dtype: torch.dtype
    """Of matrix products."""
    autocast: bool


class Attend(torch.autograd.Function):
    """Attention by a fused kernel: keeps queries, keys, values, the result and a number for each query."""

    @staticmethod
    def forward(ctx, query, key, value, mask, ledger: Ledger, blocks: bool):
        rows = query.shape[0] * query.shape[1]
        ctx.sizes, ctx.ledger = (rows, query.shape[2], key.shape[2], query.shape[3]), ledger
        ledger.count("attention", ctx.sizes, query.dtype, backward=False)
        if blocks:
            # `layers.blockwise`: copies with the heads of keys repeated, nothing of the result.
            groups = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
            ctx.groups = groups
            ctx.save_for_backward(*(x.reshape(-1, *x.shape[2:]) for x in (query, key, value)))
            return torch.empty(query.shape, dtype=query.dtype, device=META)
        ctx.groups = 0
        B, H, T, K = query.shape
        attended = torch.empty(B, T, H, K, dtype=query.dtype, device=META).transpose(1, 2)
        ctx.save_for_backward(query, key, value, mask, attended, torch.empty(B, H, T, dtype=torch.float32, device=META))
        return attended

    @staticmethod
    def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.ledger.count("attention", ctx.sizes, gradients[0].dtype, backward=True)
        query, key, value = ctx.saved_tensors[:3]
        B, H = gradients[0].shape[:2]
        if ctx.groups:
            of_query = torch.empty(gradients[0].shape, dtype=query.dtype, device=META)
            of_key, of_value = (
                torch.empty(B, H // ctx.groups, *x.shape[1:], dtype=x.dtype, device=META) for x in (key, value)
            )
            return of_query, of_key, of_value, None, None, None
        # As the kernels lay them out.
        made = (
            torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=x.dtype, device=META).transpose(1, 2)
            for x in (query, key, value)
        )
        return *made, None, None, None


class Mask(torch.autograd.Function):
    """Dropout: keeps what it has drawn."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.save_for_backward(torch.empty(x.shape, dtype=dtype, device=META))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.empty_like(gradients[0]), None


class Recur(torch.autograd.Function):
    """Recurrent layers of one direction or two: keeps inputs, outputs and what the gates said."""

    @staticmethod
    def forward(ctx, x, kernels: "OnDevice", gates: int, layers: int, directions: int, states: int, *tensors):
        width, (batch, time, _) = tensors[0].shape[-1], x.shape
        per_token, keeps_output = recurrent_workspace(kernels.device, gates)
        ctx.ledger, ctx.sizes = kernels.ledger, []
        kept, out = [], x
        for _layer in range(layers):
            kept.append(out)
            for _direction in range(directions):
                ctx.sizes.append((batch, time, out.shape[-1], width, gates))
                kept.append(torch.empty(batch, time + 1, per_token * width, dtype=x.dtype, device=META))
            out = torch.empty(batch, time, directions * width, dtype=x.dtype, device=META)
        for sizes in ctx.sizes:
            ctx.ledger.count("recurrence", sizes, x.dtype, backward=False)
        ctx.inputs = len(tensors)
        ctx.save_for_backward(*tensors, *kept, *([out] if keeps_output else []))
        return out, *(torch.empty_like(state) for state in tensors[:states])

    @staticmethod
    def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
        for sizes in ctx.sizes:
            ctx.ledger.count("recurrence", sizes, gradients[0].dtype, backward=True)
        tensors, x = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs]
        return torch.empty_like(x), None, None, None, None, None, *(torch.empty_like(t) for t in tensors)


def recurrent_workspace(device: Device, gates: int) -> tuple[int, bool]:
    """Numbers of a hidden width that torch keeps for each token of a recurrent layer beside its input, and whether its output, too.

    Those of a CPU were counted (an LSTM's is oneDNN's workspace, bytes of which do not halve with the type); those of cuDNN, which
    does not tell, are gates and cell.
    """
    if device.kind != "cpu":
        return gates + 1 if gates > 1 else 1, True
    if gates == 4:
        return 21 if device.dtype == torch.bfloat16 else 15, True
    return 7 if gates == 3 else 1, False


GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class OnDevice(TorchFunctionMode):
    """Puts the kernels and casts of a device in the place of torch's own on the meta device."""

    def __init__(self, device: Device, ledger: Ledger, length: int):
        super().__init__()
        self.device, self.ledger, self.length = device, ledger, length
        self.casts: dict[int, Tensor] = {}
        """Weights in the type of matrix products, once a forward pass, as autocast keeps them."""

    def cast(self, tensor: Any) -> Any:
        if not self.device.autocast or not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
            return tensor
        if not tensor.is_leaf or not tensor.requires_grad:
            return tensor.to(self.device.dtype)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(self.device.dtype)
            number = self.ledger.number_of(self.casts[id(tensor)])
            assert number is not None
            self.ledger.copies.add(number)
        return self.casts[id(tensor)]

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in FILLING:
            return args[0] if args else kwargs["tensor"]
        if name in CASTING:
            args = tuple(self.cast(value) for value in args)
        elif name in GATES:
            return self.recur(name, *args)
        elif replacement := getattr(self, f"as_{name.strip('_')}", None):
            return replacement(*args, **kwargs)
        return function(*args, **kwargs)

    def as_scaled_dot_product_attention(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ) -> Tensor:
        query, key, value = (self.cast(x) for x in (query, key, value))
        strided = any(x.stride(-1) != 1 for x in (query, key, value))
        if self.device.kind == "cpu" and (dropout_p or strided):
            # No fused kernel there: the weights of all pairs are written out, in fp32.
            groups, dtype = query.shape[1] // key.shape[1], query.dtype
            query, key, value = (x.to(torch.float32) for x in (query, key, value))
            key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
            half = query.shape[-1] ** -0.25
            weights = torch.softmax(torch.matmul(query * half, (key * half).mT), -1)
            return torch.matmul(self.as_dropout(weights, dropout_p), value).to(dtype)
        blocks = self.device.kind == "cpu" and query.dtype == torch.bfloat16 and is_causal
        if attn_mask is not None:
            attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype)
        return Attend.apply(query, key, value, attn_mask, self.ledger, blocks)  # pyright: ignore[reportReturnType]

    def as_dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        return Mask.apply(x, x.dtype if self.device.kind == "cpu" else torch.bool)  # pyright: ignore[reportReturnType]

    def as_arange(self, start: int, end: int | None = None, step: int = 1, *, dtype: Any = None, **_: Any) -> Tensor:
        start, end = (0, start) if end is None else (start, end)
        return torch.empty(math.ceil((end - start) / step), dtype=dtype or torch.int64)

    def as_one_hot(self, tokens: Tensor, classes: int) -> Tensor:
        return torch.empty(*tokens.shape, classes, dtype=torch.int64)

    # A batch is rehearsed as though every row were as long as can be.
    def as_int(self, tensor: Tensor) -> int:
        return self.length

    def as_bool(self, tensor: Tensor) -> bool:
        return True

    def as_cpu(self, tensor: Tensor) -> Tensor:
        return tensor

    def recur(self, name: str, x: Tensor, state: Any, weights: Any, *options: Any) -> Any:
        _bias, layers, _dropout, _training, bidirectional, _batch_first = options
        states = list(state) if isinstance(state, tuple | list) else [state]
        x, *tensors = (self.cast(tensor) for tensor in (x, *states, *weights))
        sizes = GATES[name], layers, 2 if bidirectional else 1, len(states)
        return Recur.apply(x, self, *sizes, *tensors)


CASTING = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"}
"""What autocast computes in the lower precision."""


def rehearsed_loss(device: Device, ledger: Ledger) -> type[LinearCrossEntropy]:
    """The head's loss with the chunks of a device."""

    class Loss(LinearCrossEntropy):
        @staticmethod
        def forward(ctx, x_ND, weight_VD, bias_V, targets_N, *options):
            ctx.dtypes = x_ND.dtype, weight_VD.dtype
            ledger.in_head, ledger.at_head = True, len(ledger.events)
            dtype = device.dtype
            parameters = (x_ND.to(dtype), weight_VD.to(dtype), bias_V if bias_V is None else bias_V.to(dtype))
            size = head.chunk_tokens(device.kind, weight_VD.shape[0])
            scores, gradients = head.in_chunks(*parameters, targets_N, *options, size=size)
            ctx.save_for_backward(*gradients)
            ctx.mark_non_differentiable(*(part for part in scores[1:] if part is not None))
            return scores

    return Loss


@contextmanager
def plain_checks() -> Iterator[None]:
    """torch checks shapes without loading its symbolic algebra first, which takes a second: shapes here are plain numbers."""
    original = torch._check_with

    def check(error: type[Exception], holds: Any, message: Callable[[], str] | None) -> None:
        if not holds:
            raise error(message() if message else "shapes do not fit")

    torch._check_with = check
    try:
        yield
    finally:
        torch._check_with = original


def scoring(module: Head, loss: type[LinearCrossEntropy]) -> Callable:
    def scores(x_BTD: Tensor, targets: Targets) -> Scores:
        targets_BT, *terms = targets
        parameters = (x_BTD.flatten(0, -2), module.weight, module.bias, targets_BT.flatten(), *terms)
        value, nll_N, _ = loss.apply(*parameters, True)  # pyright: ignore[reportGeneralTypeIssues]
        return Scores(value, nll_N.view_as(targets_BT), None)

    return scores


class Seed(torch.autograd.Function):
    """A number whose gradient by `out` is the one given: to begin a backward pass with that loads torch's symbolic algebra."""

    @staticmethod
    def forward(ctx, out, gradient):
        ctx.save_for_backward(gradient)
        return torch.empty((), device=META)

    @staticmethod
    def backward(ctx, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0], None


class Recompute(torch.autograd.Function):
    """Activation checkpointing, written out: torch's own asks the device for its random state."""

    @staticmethod
    def forward(ctx, run, kernels, *inputs):
        ctx.run, ctx.kernels = run, kernels
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        # torch takes `backward` itself for a function that may be overridden, and the kernels off while it is.
        with META, ctx.kernels, torch.enable_grad():
            out = ctx.run(*inputs)
            ctx.kernels.casts.clear()
            seed = Seed.apply(out, gradient)
        seed.backward()  # pyright: ignore[reportOptionalMemberAccess]
        return None, None, *(tensor.grad for tensor in inputs)


def recomputing(model: LanguageModel, kernels: OnDevice) -> Callable:
    every = model.checkpoint_blocks

    def run_block(number: int, block: nn.Module, *inputs: Any) -> Tensor:
        if (number + 1) % every:
            return block(*inputs)
        leaves, form = tree_flatten(inputs)
        moving = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

        def run(*tensors: Tensor) -> Tensor:
            given = dict(zip(moving, tensors, strict=True))
            return block(*tree_unflatten([given.get(place, leaf) for place, leaf in enumerate(leaves)], form))

        return Recompute.apply(run, kernels, *(leaves[place] for place in moving))  # pyright: ignore[reportReturnType]

    return run_block
