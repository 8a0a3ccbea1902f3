"""The operations of a step on the meta device, and each tensor that comes and goes: what a rehearsal is counted from."""

import weakref
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class Operation(NamedTuple):
    """What the time of an operation depends on."""

    kind: str
    """matmul, attention, recurrence, move (of bytes, element by element) or function (the same, and arithmetic that takes longer)."""
    sizes: tuple[int, ...]
    """Of a matmul: batch, rows, inner, columns; of attention: rows (batch x heads), queries, keys, head width; of a recurrence:
    batch, time, input and hidden width, gates; of a move: bytes."""
    dtype: torch.dtype = torch.float32
    backward: bool = False


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
