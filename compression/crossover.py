"""What a packed kernel is worth on this processor: measured, in milliseconds."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from compression.packed import Bf16Linear, CompiledLinear, PackedLinear
from compression.packed.linear import NEVER

_PROBE_ROWS = 1024
_FEW, _MANY = 16, 128
_LATEST = 256
"""Whatever is timed on a busy machine: so many rows are multiplied densely, and long texts are
read by the same kernels at every start."""

LONG_TEXT = 256
"""Rows of a step from which on bf16 products are worth their noise to integer weights."""

READING = 64
"""Rows from which on products that are timed are dense where a text is only read: one figure for
all loads, near those that were timed."""

_SPEED_BUDGET_S = 0.1
_LEAST_RUNS = 5
_MOST_ELEMENTS = 16 * 1024 * 1024
"""Larger weights are timed on a part of their rows, which a product reads at the same speed."""
_EVICTION_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class KernelSpeed:
    """One product with one row of inputs, the weight out of the caches as in a decoder's step."""

    scheme: str
    shape: tuple[int, int]
    """Rows and columns of the weight that was timed."""
    kernel: str
    microseconds: float
    bf16_microseconds: float
    """An unquantized weight of the same shape, timed in turn with the other."""


def measure_speed(layer: PackedLinear, *, rows: int | None = None) -> KernelSpeed:
    """Time ``layer``'s kernel for one row against bf16, in some 0.1 s: medians of runs in turn.

    Stand-ins of the same shape are timed, at most 16 million weights of them, so that ``layer``
    itself is only looked at. Runs that the system interrupted for another process do not count; if
    all were, the fastest does.
    ``rows`` is for a ``layer`` that is only the beginning of the one to tell of.
    """
    rows = max(1, min(rows or layer.rows, _MOST_ELEMENTS // layer.columns))
    start = time.perf_counter()
    candidate = layer.stand_in(rows)
    candidate.dense_from = NEVER
    full = Bf16Linear(torch.ones(rows, layer.columns, dtype=torch.bfloat16), None)
    full.dense_from = NEVER
    x = torch.ones(1, layer.columns, dtype=torch.bfloat16)
    others = torch.zeros(_EVICTION_BYTES // 4)
    timed: dict[PackedLinear, list[_Run]] = {candidate: [], full: []}
    products = {linear: _product(linear, x) for linear in timed}
    for product in products.values():
        product()
    while len(timed[full]) < _LEAST_RUNS or time.perf_counter() - start < _SPEED_BUDGET_S:
        for linear, runs in timed.items():
            runs.append(_cold_run(products[linear], others))
    return KernelSpeed(
        scheme=layer.scheme,
        shape=(rows, layer.columns),
        kernel=layer.kernel,
        microseconds=_median_us(timed[candidate]),
        bf16_microseconds=_median_us(timed[full]),
    )


class _Run(NamedTuple):
    interrupted: bool
    seconds: float


def _product(linear: PackedLinear, x: Tensor) -> Callable[[], Tensor]:
    """Return the product alone, without what is made ready for it."""
    if isinstance(linear, CompiledLinear):
        return linear.product(x).run
    return partial(linear, x)


def _cold_run(product: Callable[[], Tensor], others: Tensor) -> _Run:
    """Time one product after ``others`` has taken the caches."""
    others.sum()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    start = time.perf_counter()
    product()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    return _Run(after > before, seconds)


def _median_us(runs: list[_Run]) -> float:
    undisturbed = [run.seconds for run in runs if not run.interrupted]
    return 1e6 * (median(undisturbed) if undisturbed else min(run.seconds for run in runs))


def tune(linears: list[PackedLinear]) -> None:
    """Set ``dense_from``, ``is_timed`` and ``dense_dtype`` of every layer; layers that are timed
    share their kernel's figure.

    A small stand-in is timed, so that it takes milliseconds. The compiled kernels are for any
    number of rows where nothing but f32 could take their place, and where they run on a matrix
    unit. Those of integer weights are for any but long texts elsewhere: they sum exactly what bf16
    would round.
    """
    dtype = fast_dense_dtype()
    by_kernel: dict[str, list[PackedLinear]] = {}
    for linear in linears:
        linear.dense_dtype = dtype
        if isinstance(linear, CompiledLinear) and (dtype is torch.float32 or linear.on_unit):
            linear.dense_from = NEVER
        elif isinstance(linear, CompiledLinear) and not isinstance(linear, Bf16Linear):
            linear.dense_from = LONG_TEXT
        else:
            by_kernel.setdefault(linear.kernel, []).append(linear)
    for group in by_kernel.values():
        probe = group[0].stand_in(_PROBE_ROWS)
        probe.dense_dtype = dtype
        dense_from = _crossover(probe)
        for linear in group:
            linear.dense_from, linear.is_timed = dense_from, True


def reading_from(linear: PackedLinear) -> int:
    """Return from how many rows on a layer is multiplied densely where a text is only read."""
    return READING if linear.is_timed else linear.dense_from


@contextmanager
def as_at_any_load(linears: Iterable[PackedLinear]) -> Iterator[None]:
    """Multiply by row counts that no clock has found, while the block is open.

    bf16 rounds what kernels sum exactly: an engine whose clock chose otherwise would read a text
    otherwise.
    """
    timed = [(linear, linear.dense_from) for linear in linears if linear.is_timed]
    for linear, _ in timed:
        linear.dense_from = reading_from(linear)
    try:
        yield
    finally:
        for linear, dense_from in timed:
            linear.dense_from = dense_from


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
        return _LATEST
    unpacking = dense_few - dense_per_row * _FEW
    return min(_LATEST, max(2, round(unpacking / (packed_per_row - dense_per_row))))


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
