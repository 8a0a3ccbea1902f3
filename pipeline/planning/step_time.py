"""The time of a training step from what `bench` has measured of a machine: each operation of a rehearsed step at the speed of its size.

A product of matrices takes its FLOPs at the speed measured for its shape, what goes element by element its bytes at the bandwidth measured
for their number, attention and recurrent layers what was measured of them; to each comes what any operation costs however small it is.
Between the sizes measured, logarithms are interpolated.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import product
from math import exp, log, prod
from typing import Any

import torch

from pipeline.planning.ledger import Operation
from pipeline.planning.rehearsal import Rehearsal

BF16, FP32 = "bf16", "fp32"


def type_name(dtype: torch.dtype) -> str:
    return FP32 if dtype in (torch.float32, torch.float64) else BF16


class Table:
    """A positive quantity measured at every combination of sizes.

    Args:
        axes: the sizes along each axis, from small to large.
        values: one for each combination, the last axis running fastest.
    """

    def __init__(self, axes: Sequence[Sequence[float]], values: Sequence[float]):
        self.axes = [[log(size) for size in axis] for axis in axes]
        self.values = dict(zip(product(*(range(len(axis)) for axis in axes)), map(log, values), strict=True))

    def __call__(self, *sizes: float) -> float:
        """Between the sizes measured: linear in logarithms along each axis; outside them: as at the nearest."""
        cells = []
        for axis, size in zip(self.axes, sizes, strict=True):
            place = min(max(log(max(size, 1e-9)), axis[0]), axis[-1])
            low = min(max(0, bisect_right(axis, place) - 1), max(0, len(axis) - 2))
            high = min(low + 1, len(axis) - 1)
            share = (place - axis[low]) / (axis[high] - axis[low]) if high > low else 0.0
            cells.append(((low, 1 - share), (high, share)))
        return exp(
            sum(
                prod(share for _, share in corner) * self.values[tuple(k for k, _ in corner)]
                for corner in product(*cells)
            )
        )


class Speeds:
    """What `bench` has measured, as functions of sizes."""

    def __init__(self, measured: Mapping[str, Any]):
        def tables(name: str) -> dict[str, Table]:
            return {key: Table(found["axes"], found["values"]) for key, found in measured[name].items()}

        self.matmul, self.attention, self.recurrence = (tables(name) for name in ("matmul", "attention", "recurrence"))
        self.moves = tables("moves")
        self.operation = measured["operation_seconds"]
        self.optimizer = measured["optimizer_seconds_per_parameter"]
        self.loop = measured["loop_seconds"]

    def seconds(self, operation: Operation) -> float:
        """Of one operation."""
        sizes, dtype = operation.sizes, type_name(operation.dtype)
        side = "backward" if operation.backward else "forward"
        if operation.kind == "matmul":
            batch, rows, inner, columns = sizes
            return self.operation + 2 * batch * rows * inner * columns / self.matmul[dtype](rows, inner, columns)
        if operation.kind == "attention":
            rows, queries, keys, width = sizes
            # FLOPs of forward; what a causal mask leaves out is part of the speed.
            return self.operation + 4 * rows * queries * keys * width / self.attention[f"{dtype} {side}"](
                queries, width
            )
        if operation.kind == "recurrence":
            batch, time, given, width, gates = sizes
            each = self.recurrence[f"{dtype} {gates} {side}"](batch, width)
            # Measured with inputs as wide as the state; other inputs have other products, of all time steps at once.
            more = 2 * batch * time * (given - width) * gates * width * (2 if operation.backward else 1)
            return max(self.operation, time * each + more / self.matmul[dtype](batch * time, given, gates * width))
        kind = f"{operation.kind} {dtype}" if operation.kind == "function" else "move"
        return self.operation + sizes[0] / self.moves[kind](sizes[0])


def step_seconds(speeds: Speeds, micro_batch: Rehearsal, *, micro_batches: int, parameters: int) -> float:
    """Of one optimizer step of one process.

    Args:
        micro_batch: rehearsed.
        micro_batches: of a step.
        parameters: that the optimizer steps.
    """
    passes = sum(count * speeds.seconds(operation) for operation, count in micro_batch.operations.items())
    return micro_batches * (passes + speeds.loop) + parameters * speeds.optimizer
