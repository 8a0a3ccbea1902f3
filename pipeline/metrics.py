"""Figures of merit: perplexity, bits per byte, and the share of the machine's arithmetic that training uses."""

import math
import time

import torch


def perplexity(nats_per_token: float) -> float:
    """exp of the mean loss; infinite rather than an overflow."""
    return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Loss summed over a text, in bits, by its length in UTF-8 bytes: comparable between tokenizers."""
    return nats / math.log(2) / text_bytes if text_bytes else math.nan


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest square matrix product in so many seconds: the peak that MFU is measured against."""
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
