"""A training step on shapes without numbers: which bytes it holds at once, and which operations it is made of.

The model's own code runs forward and backward on the meta device, so what autograd keeps is what it keeps in training, whatever the family.
Three things are different on a real device, and are put in place here: autocast, kernels that keep less than the formula they compute
(attention, recurrent layers, dropout), and the chunks in which the head takes the loss.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pipeline.layers import head
from pipeline.layers.head import Head, LinearCrossEntropy, Scores, Targets
from pipeline.models.base import EncoderDecoder, LanguageModel, ModelConfig
from pipeline.planning.shapes import FILLING, LeaveUnfilled

# B batch, T time, S source time, H heads, K head width, D width

META = torch.device("meta")
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
OF_WEIGHTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def compute_type(precision: str) -> torch.dtype:
    """What matrices are multiplied in."""
    return AUTOCAST.get(precision) or OF_WEIGHTS.get(precision, torch.float32)


def weight_type(precision: str) -> torch.dtype:
    return OF_WEIGHTS.get(precision, torch.float32)


class Operation(NamedTuple):
    """What the time of an operation depends on."""

    kind: str
    """matmul, attention, recurrence, move (of bytes, element by element) or function (the same, and arithmetic that takes longer)."""
    sizes: tuple[int, ...]
    """Of a matmul: batch, rows, inner, columns; of attention: rows (batch x heads), queries, keys, head width; of a recurrence:
    batch, time, input and hidden width, gates; of a move: bytes."""
    dtype: torch.dtype = torch.float32
    backward: bool = False


@dataclass
class Rehearsal:
    """What a forward and a backward pass need; bytes of one rank."""

    saved: float = 0.0
    """Bytes that the backward pass waits for, at the end of the forward pass (activations), without those below."""
    copies: float = 0.0
    """The same of weights in the type of matrix products: autocast's, which the backward pass waits for as well."""
    saved_by_head: float = 0.0
    """The same of the head: gradients of its vectors and of its weight."""
    in_head: float = 0.0
    """The most that a chunk of logits and probabilities takes beside that."""
    # The most that is held at once in each phase: every phase grows evenly with depth and micro-batch, the most of all does not.
    forward: float = 0.0
    """Before the head."""
    head: float = 0.0
    turn: float = 0.0
    """In the first half of the backward pass, gradients of parameters included."""
    end: float = 0.0
    """In its second half, so too."""
    turn_without: float = 0.0
    """In the first half, without gradients of parameters."""
    end_without: float = 0.0
    gradients: float = 0.0
    """Bytes of the parameters' gradients."""
    operations: Counter = field(default_factory=Counter)
    """How often each Operation takes place."""

    @property
    def peak(self) -> float:
        """The most that is held at once, gradients included, where these are made anew in each step."""
        return max(self.forward, self.head, self.turn, self.end)

    @property
    def peak_without_gradients(self) -> float:
        """The most that is held at once beside the parameters' gradients."""
        return max(self.forward, self.head, self.turn_without, self.end_without)

    @property
    def passing(self) -> float:
        """What of that is neither kept for the backward pass nor of the head: temporary results."""
        return max(0.0, self.peak_without_gradients - self.saved - self.copies - self.saved_by_head)

    def __sub__(self, other: "Rehearsal") -> "Rehearsal":
        return self.combined(other, -1)

    def combined(self, other: "Rehearsal", times: float) -> "Rehearsal":
        """Each figure plus so many times the other's."""
        numbers = {name: getattr(self, name) + times * getattr(other, name) for name in self.numbers()}
        operations = Counter(self.operations)
        for operation, count in other.operations.items():
            operations[operation] += times * count  # pyright: ignore[reportArgumentType]
        return Rehearsal(**numbers, operations=operations)

    @staticmethod
    def numbers() -> list[str]:
        return [name for name in Rehearsal.__dataclass_fields__ if name != "operations"]


class Device(NamedTuple):
    """What decides which kernels a step has."""

    kind: str
    """cpu or cuda."""
    dtype: torch.dtype
    """Of matrix products."""
    autocast: bool


class Ledger(TorchDispatchMode):
    """Writes down each operation and each tensor that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter = Counter()
        self.events: list[tuple[int, int]] = []
        """Bytes and number of each storage as it comes, negative bytes as it goes."""
        self.living: dict[int, Any] = {}
        self.numbers = 0
        self.held: set[int] = set()
        """Numbers of storages that the head's chunks use."""
        self.in_head = False
        self.at_head = 0
        """Events before the head."""
        self.backward = False
        self.copies: set[int] = set()
        """Numbers of storages that are weights in the type of matrix products."""
        self.parameters: set[int] = set()
        """Storages of the model's own."""

    def see(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.living or key in self.parameters:
            return
        self.numbers += 1
        number, size = self.numbers, storage.nbytes()
        self.living[key] = (number, weakref.ref(storage, lambda _: self.gone(key, number, size)))
        self.events.append((size, number))
        if self.in_head:
            self.held.add(number)

    def gone(self, key: int, number: int, size: int) -> None:
        self.living.pop(key, None)
        self.events.append((-size, number))

    def number_of(self, tensor: Tensor) -> int | None:
        entry = self.living.get(tensor.untyped_storage()._cdata)
        return entry and entry[0]

    def count(self, kind: str, sizes: tuple[int, ...], dtype: torch.dtype, backward: bool | None = None) -> None:
        self.operations[Operation(kind, sizes, dtype, self.backward if backward is None else backward)] += 1


def record(self: Ledger, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
    """Ledger.__torch_dispatch__."""
    kwargs = kwargs or {}
    result = written_in_place(operation, args) if "out" not in kwargs else kwargs["out"]
    if result is None:
        result = elementwise(operation, args, kwargs)
    if result is None and (rule := RULES.get(operation._schema.name)):
        result = rule(*args, **kwargs)
    if result is None:
        result = operation(*args, **kwargs)
    results = result if isinstance(result, tuple | list) else (result,)
    name = operation._schema.name.removeprefix("aten::")
    if name in MATMULS:
        a, b = MATMULS[name](args)
        batch = a.shape[0] if a.dim() == 3 else 1
        self.count("matmul", (batch, a.shape[-2], a.shape[-1], b.shape[-1]), a.dtype)
    elif name not in VIEWS:
        tensors = [t for t in (*args, *results) if isinstance(t, Tensor)]
        tensors += [t for list_ in args if isinstance(list_, list | tuple) for t in list_ if isinstance(t, Tensor)]
        floats = [t.dtype for t in tensors if t.is_floating_point()]
        # What is broadcast or written in place is read once more than it is long; that is left out.
        kind = "function" if name in FUNCTIONS else "move"
        moved = sum(t.numel() * t.element_size() for t in tensors)
        self.count(kind, (moved,), floats[-1] if floats else torch.float32)
    for each in results:
        self.see(each)
    return result


# Not in the class body: torch would wrap it there in something that loads its compiler.
Ledger.__torch_dispatch__ = record  # pyright: ignore[reportAttributeAccessIssue]


def written_in_place(operation: Any, args: tuple) -> Tensor | None:
    """The first argument, where the operation returns that with other numbers."""
    name = operation._schema.name
    return args[0] if name.endswith("_") and not name.endswith("__") else None


def elementwise(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """What an operation on each element gives; None of another operation.

    torch's own answer is written in Python and loads its compiler for some layouts, which takes a second.
    """
    name = operation._schema.name.removeprefix("aten::")
    if name not in ELEMENTWISE:
        return None
    tensors = [value for value in args if isinstance(value, Tensor)]
    sizes = zip_longest(*(reversed(tensor.shape) for tensor in tensors), fillvalue=1)
    shape = torch.Size([max(along) for along in sizes][::-1])
    dtype = torch.bool if name in COMPARING else kwargs.get("dtype") or tensors[0].dtype
    if name in PROMOTING and len(tensors) > 1:
        dtype = torch.result_type(*tensors[:2])
    whole = next((tensor for tensor in tensors if tensor.shape == shape), None)
    if whole is None or kwargs.get("memory_format") == torch.contiguous_format or not dense(whole):
        return torch.empty(shape, dtype=dtype, device=META)
    return torch.empty_strided(shape, whole.stride(), dtype=dtype, device=META)


def dense(tensor: Tensor) -> bool:
    """Whether its numbers lie side by side, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def reduced(x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    gone = (
        range(x.dim())
        if dims is None or dims == []
        else [d % x.dim() for d in (dims if isinstance(dims, list | tuple) else [dims])]
    )
    shape = [1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone]
    return torch.empty(shape, dtype=dtype or x.dtype, device=META)


def layer_normed(x: Tensor, shape: list[int], *_: Any) -> tuple[Tensor, ...]:
    each = [*x.shape[: x.dim() - len(shape)], *[1] * len(shape)]
    return torch.empty(x.shape, dtype=x.dtype, device=META), *(
        torch.empty(each, dtype=x.dtype, device=META) for _ in range(2)
    )


def layer_norm_gradients(
    gradient: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Any, bias: Any, mask: Any
):
    return tuple(
        None if like is None else torch.empty(like.shape, dtype=like.dtype, device=META) for like in (x, weight, bias)
    )


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return torch.empty(shape, dtype=parts[0].dtype, device=META)


def padded(x: Tensor, pads: list[int], *_: Any) -> Tensor:
    shape = list(x.shape)
    for place in range(len(pads) // 2):
        shape[-1 - place] += pads[2 * place] + pads[2 * place + 1]
    return torch.empty(shape, dtype=x.dtype, device=META)


RULES: dict[str, Callable[..., Any]] = {
    f"aten::{name}": rule
    for name, rule in {
        "sum": reduced,
        "mean": reduced,
        "amax": reduced,
        "all": lambda *args: reduced(*args, dtype=torch.bool),
        "native_layer_norm": layer_normed,
        "native_layer_norm_backward": layer_norm_gradients,
        "cat": joined,
        "stack": lambda parts, dim=0: joined([part.unsqueeze(dim) for part in parts], dim),
        "constant_pad_nd": padded,
        "slice_backward": lambda gradient, sizes, *_: torch.empty(sizes, dtype=gradient.dtype, device=META),
        "unfold_backward": lambda gradient, sizes, *_: torch.empty(sizes, dtype=gradient.dtype, device=META),
        "mm": lambda a, b: torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=META),
        "addmm": lambda bias, a, b, **_: torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=META),
        "bmm": lambda a, b: torch.empty(*a.shape[:2], b.shape[2], dtype=a.dtype, device=META),
        "embedding": lambda table, tokens, *_: torch.empty(
            *tokens.shape, table.shape[1], dtype=table.dtype, device=META
        ),
        "gather": lambda x, dim, index, **_: torch.empty(index.shape, dtype=x.dtype, device=META),
        "_softmax": lambda x, dim, half: torch.empty(x.shape, dtype=x.dtype, device=META),
        "_softmax_backward_data": lambda gradient, x, dim, dtype: torch.empty(x.shape, dtype=dtype, device=META),
    }.items()
}
"""What these give, for the same reason."""
PROMOTING = {"add", "sub", "mul", "div", "rsub", "maximum", "minimum"}
COMPARING = {"eq", "ne", "lt", "le", "gt", "ge"}
ELEMENTWISE = PROMOTING | COMPARING | {
    "neg", "reciprocal", "exp", "log", "cos", "sin", "tanh", "sigmoid", "silu", "gelu", "relu", "rsqrt", "abs", "pow", "clamp", "clamp_min", "square",
    "masked_fill", "bitwise_and", "logical_and", "bitwise_not", "gelu_backward", "tanh_backward", "threshold_backward",
    "sigmoid_backward", "silu_backward", "empty_like", "ones_like", "zeros_like", "clone", "_to_copy",
}  # fmt: skip
MATMULS: dict[str, Callable[[tuple], tuple[Tensor, Tensor]]] = {
    "mm": lambda args: (args[0], args[1]),
    "bmm": lambda args: (args[0], args[1]),
    "addmm": lambda args: (args[1], args[2]),
    "baddbmm": lambda args: (args[1], args[2]),
}
FUNCTIONS = {
    "gelu",
    "gelu_backward",
    "tanh",
    "sigmoid",
    "silu",
    "silu_backward",
    "exp",
    "softmax",
    "_softmax",
    "cos",
    "sin",
    "pow",
}
VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "detach", "split", "split_with_sizes", "slice", "select", "unsqueeze", "squeeze", "expand",
    "permute", "alias", "as_strided", "empty", "empty_like", "new_empty", "unbind", "unfold", "empty_strided", "lift_fresh",
}  # fmt: skip


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


def rehearse(
    config: ModelConfig, batch: int, context: int, precision: str, device: str, *, checkpoint_blocks: int = 0, carried: bool = False,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
) -> Rehearsal:  # fmt: skip
    """One micro-batch through the model, forward and backward.

    Args:
        batch: sequences of the micro-batch.
        context: tokens of each; of pairs, of source and of target.
        precision: as trainer.precision.
        device: cpu or cuda.
        checkpoint_blocks: as model.checkpoint_blocks.
        carried: whether a recurrent state comes from the batch before.
    """
    about = Device(device, compute_type(precision), precision in AUTOCAST)
    with META, LeaveUnfilled():
        model = config.build().to(weight_type(precision)).train()
    ledger = Ledger()
    kernels = OnDevice(about, ledger, context)
    loss = rehearsed_loss(about, ledger)
    for module in model.modules():
        if isinstance(module, Head):
            module.scores = scoring(module, loss)
    if checkpoint_blocks:
        model.recompute_blocks(checkpoint_blocks)
        for part in (model, *model.modules()):
            if isinstance(part, LanguageModel) and part.checkpoint_blocks:
                part.run_block = recomputing(part, kernels)
    parameters = list(model.parameters())
    ledger.parameters = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        number = ledger.number_of(tensor)
        if number is not None:
            kept[number] = tensor.untyped_storage().nbytes()
        return tensor

    with plain_checks(), torch.autocast("cpu", about.dtype, enabled=about.autocast), META, kernels, ledger:
        tokens_BT = torch.empty(batch, context, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            state = None
            if isinstance(model, EncoderDecoder):
                state = model.encode(torch.empty(batch, context, dtype=torch.int64))
            elif carried:
                state = model.init_state(batch, context)
            scores, state = model(tokens_BT, state, Targets(tokens_BT, label_smoothing, z_loss))
        ledger.in_head = False
        kernels.casts.clear()
        total = scores.loss / batch
        at_backward, ledger.backward = len(ledger.events), True
        del state
        total.backward()
    gradients = {ledger.number_of(p.grad) for p in parameters if p.grad is not None}
    return summary(ledger, kept, gradients, ledger.at_head, at_backward)


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


def summary(
    ledger: Ledger, kept: dict[int, int], gradients: set[int | None], at_head: int, at_backward: int
) -> Rehearsal:
    """What the events come to.

    Args:
        kept: bytes of what waits for the backward pass, by number of the storage.
        gradients: of the parameters, by number.
        at_head, at_backward: how many events there were before these.
    """
    result, of_head = Rehearsal(operations=ledger.operations), ledger.held
    # The head makes its gradients long before the others; they are its own.
    gradients = gradients - of_head
    result.copies = sum(size for number, size in kept.items() if number in ledger.copies)
    result.saved = sum(size for number, size in kept.items() if number not in of_head) - result.copies
    result.saved_by_head = sum(size for number, size in kept.items() if number in of_head)
    half = (at_backward + len(ledger.events)) // 2
    live = without = in_head = most_in_head = 0
    most = {"forward": 0, "head": 0, "turn": 0, "end": 0, "turn_without": 0, "end_without": 0}
    for place, (size, number) in enumerate(ledger.events):
        live += size
        if number not in gradients:
            without += size
        elif size > 0:
            result.gradients += size
        if number in of_head:
            in_head += size
            most_in_head = max(most_in_head, in_head)
        phase = "forward" if place < at_head else "head" if place < at_backward else "turn" if place < half else "end"
        most[phase] = max(most[phase], live)
        if place >= at_backward:
            most[f"{phase}_without"] = max(most[f"{phase}_without"], without)
    for phase, value in most.items():
        setattr(result, phase, float(value))
    result.in_head = float(most_in_head - result.saved_by_head)
    return result


def at_depth(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model with so many layers in each stack."""
    body = getattr(config, "body", None)
    if body is not None:
        return replace(config, body=at_depth(body, layers))  # pyright: ignore[reportCallIssue]
    return replace(config, **{name: layers for name in depths(config)})


def depths(config: ModelConfig) -> list[str]:
    return [name for name in ("layers", "encoder_layers", "decoder_layers") if hasattr(config, name)]


def depth_of(config: ModelConfig) -> int:
    """Layers of a stack; 0 where two stacks differ."""
    body = getattr(config, "body", config)
    found = {getattr(body, name) for name in depths(body)}
    return found.pop() if len(found) == 1 else 0


def rehearse_any_depth(config: ModelConfig, *args: Any, **kwargs: Any) -> Rehearsal:
    """As `rehearse`; a deep model from two shallow ones, since each of its layers adds the same."""
    layers = depth_of(config)
    period = math.lcm(
        getattr(config, "band_every", 1) if getattr(config, "band", None) else 1, kwargs.get("checkpoint_blocks") or 1
    )
    low, high = 2 * period, 3 * period
    if layers <= high + period:
        return rehearse(config, *args, **kwargs)
    shallow, deeper = (rehearse(at_depth(config, depth), *args, **kwargs) for depth in (low, high))
    whole, rest = divmod(layers - low, period)
    if rest:
        shallow = rehearse(at_depth(config, low + rest), *args, **kwargs)
        deeper = rehearse(at_depth(config, high + rest), *args, **kwargs)
        whole = (layers - low - rest) // period
    return shallow.combined(deeper - shallow, whole)
