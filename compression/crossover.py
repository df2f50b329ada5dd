"""From how many rows on a dense product beats a packed kernel: measured on this processor."""

import time
from collections.abc import Callable
from functools import partial

import torch

from compression.packed import PackedLinear

_ROW_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
NEVER = 1 << 30
"""The row count to set where the dense product never wins."""


def tune(linears: list[PackedLinear]) -> None:
    """Set ``dense_from`` and ``dense_dtype`` of every layer; layers of one kernel share a figure.

    The largest layer of each kernel is timed, since it costs most.
    """
    dtype = fast_dense_dtype()
    by_kernel: dict[str, list[PackedLinear]] = {}
    for linear in linears:
        linear.dense_dtype = dtype
        by_kernel.setdefault(linear.kernel, []).append(linear)
    for group in by_kernel.values():
        dense_from = _crossover(_typical(group))
        for linear in group:
            linear.dense_from = dense_from


def _typical(group: list[PackedLinear]) -> PackedLinear:
    """Return the layer whose shape holds most of the group's weights."""
    totals: dict[tuple[int, int], int] = {}
    for linear in group:
        shape = (linear.rows, linear.columns)
        totals[shape] = totals.get(shape, 0) + linear.num_weights
    shape = max(totals, key=lambda key: totals[key])
    return next(linear for linear in group if (linear.rows, linear.columns) == shape)


def _crossover(linear: PackedLinear) -> int:
    """Return the least of the tried row counts from which the dense product is faster."""
    low, high = 0, len(_ROW_COUNTS)
    while low < high:
        middle = (low + high) // 2
        x = torch.randn(_ROW_COUNTS[middle], linear.columns).to(linear.dense_dtype)
        linear.dense_from = NEVER
        packed = _fastest(partial(linear, x))
        linear.dense_from = 1
        dense = _fastest(partial(linear, x))
        if dense < packed:
            high = middle
        else:
            low = middle + 1
    return _ROW_COUNTS[low] if low < len(_ROW_COUNTS) else NEVER


def fast_dense_dtype() -> torch.dtype:
    """Return bf16 where this processor multiplies bf16 matrices natively, else f32.

    Without such instructions PyTorch's bf16 products of many rows are several times slower than
    f32. The choice is read, not timed: it changes the numerics, so it must not depend on the load.
    """
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def _fastest(run: Callable[[], object]) -> float:
    run()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
