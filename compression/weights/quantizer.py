"""The one verb over all methods: weight and scheme in, codes out.

A method is a way to choose each group's range and a way to round onto it.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.schemes import AUTO, Grouped, Int8
from compression.weights import imatrix, mse, rtn
from compression.weights.codes import INT8, Codes, Grid, grouped_grid, round_to
from compression.weights.gptq import round_with_feedback
from compression.weights.statistics import InputStatistics

_BLOCK_ELEMENTS = 64 * 1024
"""Rows are taken in blocks this large, so that a search stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """One weight's codes and the method that made them."""

    codes: Codes
    method: str
    output_error: float | None
    """E‖(W' - W) x‖² / E‖W x‖² on the calibration text; None without one."""


def quantize(
    weight: Tensor,
    scheme: Int8 | Grouped,
    *,
    statistics: InputStatistics | None = None,
    workers: int = 1,
) -> Codes:
    """Return the codes of one weight; see :func:`quantize_measured`."""
    return quantize_measured(weight, scheme, statistics=statistics, workers=workers).codes


def quantize_measured(
    weight: Tensor,
    scheme: Int8 | Grouped,
    *,
    statistics: InputStatistics | None = None,
    workers: int = 1,
) -> Quantized:
    """Quantize one weight and tell how.

    Args:
        weight: ``[rows, columns]`` of any float dtype; columns divide into the scheme's groups.
        scheme: what to make of it.
        statistics: of the layer's input; needed by the methods that calibrate.
        workers: threads that take blocks of rows; more than one pays where torch has one thread,
            because the blocks are too small for torch to share them out well.

    Raises:
        ValueError: the method needs statistics and there are none.
    """
    if scheme.method != "best":
        return _quantize(weight, scheme, scheme.method, statistics, workers)
    candidates = [
        _quantize(weight, scheme, method, statistics, workers)
        for method in ("mse", "imatrix", "gptq")
    ]
    return min(candidates, key=lambda candidate: candidate.output_error or 0.0)


def _quantize(
    weight: Tensor,
    scheme: Int8 | Grouped,
    method: str,
    statistics: InputStatistics | None,
    workers: int,
) -> Quantized:
    if method == AUTO:
        raise ValueError("the method 'auto' is for a plan to choose")
    if statistics is None and method in {"imatrix", "gptq"}:
        raise ValueError(f"method {method!r} needs the statistics of the layer's input")
    exact = weight.to(torch.float32) if statistics is None else statistics.target(weight)
    scale, zero = _ranges(exact, scheme, method, statistics, workers)
    grid = _grid(scheme)
    if method == "gptq" and statistics is not None:
        codes = round_with_feedback(exact, scale, zero, grid, statistics.feedback)
    else:
        groups = exact.view(*scale.shape, -1)
        codes = round_to(groups, scale.unsqueeze(-1), zero.unsqueeze(-1), grid).view_as(exact)
    made = Codes(
        codes=codes.to(torch.int8).contiguous(),
        scales=scale.to(torch.bfloat16),
        zeros=None if grid is INT8 else zero.to(torch.int8),
        bits=8 if isinstance(scheme, Int8) else scheme.bits,
    )
    error = None if statistics is None else statistics.output_error(exact, made.dequantize())
    return Quantized(made, method, error)


def _ranges(
    weight: Tensor,
    scheme: Int8 | Grouped,
    method: str,
    statistics: InputStatistics | None,
    workers: int,
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each float32 ``[rows, groups]``, searched in blocks of rows."""
    rows, columns = weight.shape
    width = columns if isinstance(scheme, Int8) else scheme.group_size
    grid = _grid(scheme)
    importance = _importance(method, statistics)
    by_group = None if importance is None else importance.view(-1, width)
    scale = torch.empty(rows, columns // width)
    zero = torch.empty(rows, columns // width)
    step = max(1, _BLOCK_ELEMENTS // columns)

    def choose(start: int) -> None:
        block = slice(start, start + step)
        values = weight[block].view(-1, columns // width, width)
        found = _choose_range(values, grid, method, by_group)
        scale[block], zero[block] = (each.squeeze(-1) for each in found)

    starts = range(0, rows, step)
    if workers == 1 or len(starts) == 1:
        for start in starts:
            choose(start)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(choose, starts))
    return scale, zero


def _importance(method: str, statistics: InputStatistics | None) -> Tensor | None:
    """Return what each column's squared error counts, ``[K]``."""
    if statistics is None:
        return None
    return statistics.feedback.importance if method == "gptq" else statistics.mean_square


def _choose_range(
    values: Tensor, grid: Grid, method: str, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Eight bits waste nothing on the largest value, and feedback makes up for the rest.
    if method == "rtn" or (method == "gptq" and grid is INT8):
        return rtn.choose_range(values, grid)
    if method == "mse" or importance is None:
        return mse.choose_range(values, grid)
    return imatrix.choose_range(values, grid, importance)


def _grid(scheme: Int8 | Grouped) -> Grid:
    return INT8 if isinstance(scheme, Int8) else grouped_grid(scheme)
