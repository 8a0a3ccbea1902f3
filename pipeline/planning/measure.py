"""How fast this machine is: what `bench` measures. Every figure is the best of several, so a busy moment does not count."""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_prep.shards import ShardWriter
from pipeline.batch import Windows
from pipeline.layers.attention import causal_attention
from pipeline.layers.head import Targets
from pipeline.layers.recurrence import GRU, LSTM, RNN
from pipeline.loader import TrainingLoader
from pipeline.models.base import EncoderDecoder, ModelConfig
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.optim import AdamW
from pipeline.planning.rehearsal import rehearse
from pipeline.planning.step_time import BF16, FP32
from pipeline.state_files import WEIGHTS, FolderWriter, Piece

TYPES = {FP32: torch.float32, BF16: torch.bfloat16}

# B batch, T time, H heads, K head width, D width

ROWS, INNER, COLUMNS = (8, 64, 512, 2048), (32, 128, 512, 2048), (32, 128, 512, 2048)
TIMES, HEAD_WIDTHS, ATTENTION_ROWS = (32, 128, 512), (32, 128), 32
BATCHES, WIDTHS, RECURRENT_TIME = (8, 32), (64, 256, 512), 128
CACHES = 2**26
"""Bytes that no cache holds."""
MOVED = tuple(2**k for k in range(12, 28, 3))
PRESETS = {
    "GPT 4 x 256": (TransformerConfig(vocab_size=8192, context=256, layers=4, width=256, heads=4), 8, 256),
    "LSTM 1 x 512": (LSTMConfig(vocab_size=8192, layers=1, width=512), 16, 128),
}
"""Models whose training step is timed, each with its micro-batch and context."""


class Stopwatch:
    """Times calls on a device."""

    def __init__(self, device: torch.device):
        self.device = device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def best(self, call: Callable[[], object], seconds: float = 0.01, least: int = 3) -> float:
        """Seconds of the fastest of at least so many calls, repeated for so many seconds; the first warms up."""
        call()
        fastest, end, done = math.inf, time.perf_counter() + seconds, 0
        while done < least or time.perf_counter() < end:
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            fastest, done = min(fastest, time.perf_counter() - start), done + 1
        return max(fastest, 1e-9)


def table(axes: tuple[tuple[int, ...], ...], measure: Callable[..., float]) -> dict[str, Any]:
    return {"axes": axes, "values": [measure(*sizes) for sizes in product(*axes)]}


def matmul_speeds(watch: Stopwatch) -> dict[str, Any]:
    """FLOP/s of products of a (rows, inner) and a (columns, inner) transposed, by type."""

    def speed(dtype: torch.dtype) -> Callable[..., float]:
        def measure(rows: int, inner: int, columns: int) -> float:
            a, b = (torch.randn(n, inner, device=watch.device).to(dtype) for n in (rows, columns))
            # What is small is timed several at a time, or the call would be most of it.
            times = max(1, int(2e6 / (rows * inner * columns)))
            out = torch.empty(rows, columns, device=watch.device, dtype=dtype)
            return (
                2
                * times
                * rows
                * inner
                * columns
                / watch.best(lambda: [torch.mm(a, b.t(), out=out) for _ in range(times)])
            )

        return measure

    return {name: table((ROWS, INNER, COLUMNS), speed(dtype)) for name, dtype in TYPES.items()}


def attention_speeds(watch: Stopwatch) -> dict[str, Any]:
    """FLOP/s (4 x rows x T x T x K) of causal attention, by type and direction."""
    found: dict[str, Any] = {}
    for name, dtype in TYPES.items():
        both = {"forward": [], "backward": []}
        for T, K in product(TIMES, HEAD_WIDTHS):
            shape = (ATTENTION_ROWS // 4, T, 4, K)
            query, key, value = (
                torch.randn(shape, device=watch.device).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)
            )
            flops = 4 * ATTENTION_ROWS * T * T * K
            out = causal_attention(query, key, value)
            gradient = torch.ones_like(out)
            forward = watch.best(lambda: causal_attention(query, key, value))  # noqa: B023  called at once
            backward = watch.best(lambda: torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True))  # noqa: B023
            both["forward"].append(flops / forward)
            both["backward"].append(flops / backward)
        for side, values in both.items():
            found[f"{name} {side}"] = {"axes": (TIMES, HEAD_WIDTHS), "values": values}
    return found


def recurrence_speeds(watch: Stopwatch) -> dict[str, Any]:
    """Seconds of a time step of a recurrent layer as wide as its input, by type, gates and direction."""
    found: dict[str, Any] = {}
    for (name, dtype), (gates, cell) in product(TYPES.items(), ((4, LSTM), (3, GRU), (1, RNN))):
        both: dict[str, list[float]] = {"forward": [], "backward": []}
        for B, D in product(BATCHES, WIDTHS):
            layer = cell(D, D).to(watch.device, dtype)
            x = torch.randn(B, RECURRENT_TIME, D, device=watch.device).to(dtype).requires_grad_()
            out, _ = layer(x)
            gradient, inputs = torch.ones_like(out), [x, *layer.parameters()]
            both["forward"].append(watch.best(lambda: layer(x), 0.01, 1) / RECURRENT_TIME)  # noqa: B023
            backward = watch.best(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True), 0.01, 1)  # noqa: B023
            both["backward"].append(backward / RECURRENT_TIME)
        for side, values in both.items():
            found[f"{name} {gates} {side}"] = {"axes": (BATCHES, WIDTHS), "values": values}
    return found


def move_speeds(watch: Stopwatch) -> dict[str, Any]:
    """Bytes/s, read and written together, of additions, and of functions by type."""

    def speed(size: int, make: Callable[[], Any], call: Callable[[Any], object]) -> float:
        # As many in turn as no cache holds: in training other tensors come between.
        buffers = [make() for _ in range(min(64, max(1, CACHES // size)))]
        return len(buffers) * size / watch.best(lambda: [call(each) for each in buffers])

    def adding(size: int) -> float:
        def make() -> list[torch.Tensor]:
            return [torch.zeros(max(1, size // 12), device=watch.device) for _ in range(3)]

        return speed(size, make, lambda each: torch.add(each[0], each[1], out=each[2]))

    def function(dtype: torch.dtype) -> Callable[[int], float]:
        def measure(size: int) -> float:
            count = max(1, size // (2 * dtype.itemsize))
            return speed(
                size,
                lambda: torch.randn(count, device=watch.device).to(dtype),
                lambda x: nn.functional.gelu(x, approximate="tanh"),
            )

        return measure

    return {"move": table((MOVED,), adding)} | {
        f"function {name}": table((MOVED,), function(d)) for name, d in TYPES.items()
    }


def memory_bandwidth(watch: Stopwatch) -> float:
    """Bytes/s, read and written together, of a copy too large for any cache."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=watch.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / watch.best(lambda: target.copy_(source), 0.3)


def bare_step(config: ModelConfig, batch: int, context: int, device: torch.device, low: bool) -> Callable[[], None]:
    """A training step without a Trainer: forward, backward, clipping, AdamW."""
    model = config.build().to(device).train()
    optimizer, parameters = AdamW().build(model), list(model.parameters())
    tokens_BT = torch.randint(0, getattr(config, "classes", config.vocab_size), (batch, context), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            state = model.encode(tokens_BT) if isinstance(model, EncoderDecoder) else None
            scores, _ = model(tokens_BT, state, Targets(tokens_BT))
        (scores.loss / tokens_BT.numel()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def operation_seconds(watch: Stopwatch) -> float:
    """What an operation costs that has next to nothing to do: of a tiny model's step, the time by the number of its operations."""
    config = TransformerConfig(vocab_size=16, context=4, layers=4, width=16, heads=2)
    step, rehearsed = bare_step(config, 1, 4, watch.device, False), rehearse(config, 1, 4, "32-true", watch.device.type)
    # The optimizer and the norms are half a dozen operations more.
    return watch.best(step, 0.3) / (sum(rehearsed.operations.values()) + 6)


def optimizer_seconds(watch: Stopwatch) -> float:
    """Of AdamW and of the norm for clipping, for each parameter."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(2048, 512, device=watch.device)) for _ in range(4)])
    optimizer, parameters = AdamW().build(module), list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)

    def step() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return watch.best(step, 0.2) / sum(parameter.numel() for parameter in parameters)


def training_speed(
    config: ModelConfig, batch: int, context: int, watch: Stopwatch, low: bool, peak: float
) -> dict[str, float]:
    """Tokens/s of a training step, and the share of the peak that they use."""
    seconds = watch.best(bare_step(config, batch, context, watch.device, low), 1.5, 4)
    with torch.device("meta"):
        flops = config.build().flops_per_token(context)
    return {
        "tokens_per_second": batch * context / seconds,
        "mfu": batch * context * flops / seconds / peak,
        "seconds": seconds,
    }


def write_shards(folder: Path, tokens: int, vocab_size: int) -> Any:
    """Random tokens as shards of one split."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, "train", "random", "uint16", tokens, 1) as writer:
        ids = np.random.default_rng(0).integers(0, vocab_size, tokens).astype(np.uint16)
        lengths = np.full(tokens // 500, 500)
        writer.add(ids[: lengths.sum()], lengths, lengths * 4)
    return tuple(writer.shards)


def loader_speed(folder: Path) -> float:
    """Tokens/s that a rank's loader hands out, made in its own thread."""
    from data_prep.shards import TokenReader

    reader = TokenReader(folder, "uint16", write_shards(folder, 2_000_000, 8192))
    samples = Windows(reader, "bench", 0, context=256, sequences=64)
    loader = TrainingLoader(samples, steps=100_000, micro_batch=16, rank=0, ranks=1, prefetch=0)
    batches = iter(loader)
    watch = Stopwatch(torch.device("cpu"))
    return 16 * 256 / watch.best(lambda: next(batches), 0.5, 20)


def checkpoint_speed(folder: Path, megabytes: int = 256) -> float:
    """Bytes/s of writing a checkpoint, hashes and fsync included; the best of three."""
    values = torch.randn(megabytes * 2**18)
    piece = Piece(WEIGHTS, "bench", tuple(values.shape), 0, values)
    fastest = math.inf
    for number in range(3):
        writer = FolderWriter(folder / f"step-{number}", 0, 1)
        start = time.perf_counter()
        writer.begin()
        writer.write([piece], {}, {})
        fastest = min(fastest, time.perf_counter() - start)
    return values.numel() * 4 / fastest


def all_reduce_speed(device: torch.device, megabytes: int = 32) -> float:
    """Bytes/s of gradients that the ranks of the running process group add up together."""
    values = torch.ones(megabytes * 2**18, device=device)
    watch = Stopwatch(device)
    return values.numel() * 4 / watch.best(lambda: torch.distributed.all_reduce(values), 0.0, 8)


ALL_REDUCE = """
import os, sys, torch
from pipeline.planning.measure import all_reduce_speed
rank, ranks, meeting, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
device = torch.device("cuda", rank) if torch.cuda.device_count() >= ranks else torch.device("cpu")
torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
speed = all_reduce_speed(device)
if rank == 0:
    open(out, "w").write(str(speed))
torch.distributed.destroy_process_group()
"""


def local_all_reduce(ranks: int, folder: Path) -> float:
    """`all_reduce_speed` of so many processes on this machine."""
    meeting, out = folder / "meeting", folder / "all_reduce"
    commands = [
        [sys.executable, "-c", ALL_REDUCE, str(rank), str(ranks), str(meeting), str(out)] for rank in range(ranks)
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands]
    try:
        for process in processes:
            _, said = process.communicate(timeout=120)
            if process.returncode:
                raise OSError(
                    f"a rank of the all-reduce ended with {process.returncode}: {said.decode()[-300:].strip()}"
                )
    finally:
        for process in processes:
            process.kill()
    return float(out.read_text())


def peak_of(device: torch.device) -> dict[str, float]:
    """FLOP/s of the fastest square product, by type."""
    from pipeline.metrics import matmul_peak

    types = TYPES | ({"fp16": torch.float16} if device.type == "cuda" else {})
    return {name: max(matmul_peak(device, dtype, seconds=0.6) for _ in range(2)) for name, dtype in types.items()}


def total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def scratch() -> tempfile.TemporaryDirectory:
    """A folder for shards and checkpoints, on the disk where the command was started, since that is where runs are written."""
    return tempfile.TemporaryDirectory(prefix=".bench-", dir=os.getcwd() if os.access(os.getcwd(), os.W_OK) else None)
