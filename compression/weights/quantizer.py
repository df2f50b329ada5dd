"""The one verb over all methods: weight and scheme in, codes out, a block of rows at a time."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import torch
from torch import Tensor

from compression.schemes import Int4, Int8
from compression.weights import mse, rtn
from compression.weights.codes import (
    INT4_ASYMMETRIC,
    INT4_SYMMETRIC,
    INT8,
    Codes,
    Grid,
    round_to,
)

ChooseRange = Callable[[Tensor, Grid], tuple[Tensor, Tensor]]

METHODS: Mapping[str, ChooseRange] = MappingProxyType(
    {"rtn": rtn.choose_range, "mse": mse.choose_range}
)
_BLOCK_ELEMENTS = 64 * 1024
"""Rows are taken in blocks this large, so that a search stays in the processor's cache."""


def quantize(weight: Tensor, scheme: Int8 | Int4, *, workers: int = 1) -> Codes:
    """Quantize one weight.

    Args:
        weight: ``[rows, columns]`` of any float dtype; columns divide into the scheme's groups.
        scheme: what to make of it.
        workers: threads that take blocks of rows; more than one pays where torch has one thread,
            because the blocks are too small for torch to share them out well.

    Returns:
        The codes, with ``groups`` 1 for int8 and ``columns / group_size`` for int4.
    """
    rows, columns = weight.shape
    width = columns if isinstance(scheme, Int8) else scheme.group_size
    grid = _grid(scheme)
    choose_range = METHODS[scheme.method]
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, columns // width, dtype=torch.bfloat16)
    zeros = torch.empty(rows, columns // width, dtype=torch.int8)
    step = max(1, _BLOCK_ELEMENTS // columns)

    def quantize_block(start: int) -> None:
        block = slice(start, start + step)
        values = weight[block].to(torch.float32).reshape(-1, columns // width, width)
        scale, zero = choose_range(values, grid)
        codes[block] = round_to(values, scale, zero, grid).reshape(-1, columns).to(torch.int8)
        scales[block] = scale.squeeze(-1).to(torch.bfloat16)
        zeros[block] = zero.squeeze(-1).to(torch.int8)

    starts = range(0, rows, step)
    if workers == 1 or len(starts) == 1:
        for start in starts:
            quantize_block(start)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(quantize_block, starts))
    return Codes(codes=codes, scales=scales, zeros=None if grid is INT8 else zeros)


def _grid(scheme: Int8 | Int4) -> Grid:
    if isinstance(scheme, Int8):
        return INT8
    return INT4_SYMMETRIC if scheme.symmetric else INT4_ASYMMETRIC
