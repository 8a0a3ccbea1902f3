"""Figures of merit: perplexity, bits per byte, and the share of the machine's arithmetic that training uses."""

import math
import platform
import time
from pathlib import Path

import torch


def perplexity(nats_per_token: float) -> float:
    """exp of the mean loss; infinite rather than an overflow."""
    return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Loss summed over a text, in bits, by its length in UTF-8 bytes: comparable between tokenizers."""
    return nats / math.log(2) / text_bytes if text_bytes else math.nan


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest square matrix product in so many seconds: the peak that MFU is measured against.

    On a machine that is busy just then it comes out too low, never too high, so the largest of several measurements is the best.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    fastest = math.inf
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or fastest == math.inf:
        synchronise()
        start = time.perf_counter()
        torch.matmul(a, b)
        synchronise()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def processor(device: torch.device) -> str:
    """What does the arithmetic, as its maker calls it; of a CPU with the number of threads that take part."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
