"""How fast the processors read memory together: the floor under one stream."""

import time

import torch

from benchmarks.engines.children import THREADS

_BYTES = 512 * 1024**2
"""More than a shared cache leaves to a few processors: from memory, not from there."""
_PASSES = 5


def read_gb_per_s() -> float:
    """Return the best of a few passes over a large buffer by all processors, in GB/s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        buffer = torch.ones(_BYTES // 4, dtype=torch.float32)
        return max(_pass(buffer) for _ in range(_PASSES))
    finally:
        torch.set_num_threads(threads)


def _pass(buffer: torch.Tensor) -> float:
    started = time.perf_counter()
    buffer.sum()
    return buffer.numel() * buffer.element_size() / (time.perf_counter() - started) / 1e9


def floor_ms(read_bytes: int, gb_per_s: float) -> float:
    """Return the milliseconds a token takes if nothing but reading the weights takes time."""
    return read_bytes / gb_per_s / 1e6
