"""From how many rows on a dense product beats a packed kernel: measured on this processor."""

import time

import torch

from compression.packed import Bf16Linear, Int4Linear, Int8Linear, PackedLinear
from compression.weights.codes import Codes

_PROBE_ROWS = 1024
_FEW, _MANY = 16, 128
NEVER = 1 << 30
"""The row count to set where the dense product never wins."""


def tune(linears: list[PackedLinear]) -> None:
    """Set ``dense_from`` and ``dense_dtype`` of every layer; layers of one kernel share a figure.

    A small stand-in is timed, so that it takes milliseconds.
    """
    dtype = fast_dense_dtype()
    by_kernel: dict[str, list[PackedLinear]] = {}
    for linear in linears:
        linear.dense_dtype = dtype
        by_kernel.setdefault(linear.kernel, []).append(linear)
    for group in by_kernel.values():
        dense_from = _crossover(_stand_in(group[0]))
        for linear in group:
            linear.dense_from = dense_from


def _stand_in(linear: PackedLinear) -> PackedLinear:
    """Return a layer on the same kernel, of the same width and few rows, with arbitrary weights."""
    rows, columns = _PROBE_ROWS, linear.columns
    probe: PackedLinear
    if isinstance(linear, Int4Linear):
        groups = columns // linear.group_size
        probe = Int4Linear(_arbitrary_codes(rows, columns, groups, high=16, zero=8), None)
    elif isinstance(linear, Int8Linear):
        probe = Int8Linear(_arbitrary_codes(rows, columns, 1, high=127, zero=None), None)
    else:
        probe = Bf16Linear(torch.ones(rows, columns), None)
    probe.dense_dtype = linear.dense_dtype
    return probe


def _arbitrary_codes(rows: int, columns: int, groups: int, *, high: int, zero: int | None) -> Codes:
    return Codes(
        codes=torch.randint(0, high, (rows, columns), dtype=torch.int8),
        scales=torch.full((rows, groups), 0.01, dtype=torch.bfloat16),
        zeros=None if zero is None else torch.full((rows, groups), zero, dtype=torch.int8),
    )


def _crossover(linear: PackedLinear) -> int:
    """Return the row count where the two lines meet.

    The packed kernels' time grows in proportion to the rows; the dense product's is a constant
    for unpacking plus a smaller part per row.
    """
    packed_per_row = _seconds(linear, _FEW, dense_from=NEVER) / _FEW
    dense_few = _seconds(linear, _FEW, dense_from=1)
    dense_many = _seconds(linear, _MANY, dense_from=1)
    dense_per_row = max(0.0, (dense_many - dense_few) / (_MANY - _FEW))
    if packed_per_row <= dense_per_row:
        return NEVER
    unpacking = dense_few - dense_per_row * _FEW
    return max(2, round(unpacking / (packed_per_row - dense_per_row)))


def _seconds(linear: PackedLinear, count: int, *, dense_from: int) -> float:
    """Return the fastest of five products with ``count`` rows."""
    linear.dense_from = dense_from
    x = torch.ones(count, linear.columns, dtype=linear.dense_dtype)
    linear(x)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        linear(x)
        best = min(best, time.perf_counter() - start)
    return best


def fast_dense_dtype() -> torch.dtype:
    """Return bf16 where this processor multiplies bf16 matrices natively, else f32.

    Without such instructions PyTorch's bf16 products of many rows are several times slower than
    f32. The choice is read, not timed: it changes the numerics, so it must not depend on the load.
    """
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32
