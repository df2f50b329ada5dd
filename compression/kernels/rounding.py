"""Inputs of integer weights, rounded to int16 a row."""

import numpy as np

from compression.kernels.compiling import compiled
from compression.kernels.memory import float_of_bits, floats, ints, shorts

EXACT = 32767.0
"""The largest code of inputs whose rounding shall not be seen: 2⁻¹⁶ of the row's peak."""
INT8 = 127.5
"""The largest code where inputs are rounded to int8 (W8A8), as compressed-tensors counts it."""

_SMALLEST = np.float32(2.0**-110)
"""A step, so that a row of zeros divides by something that has an inverse."""
_PART = 32
"""Codes that are summed at a time: the smallest group."""
_INFINITE = np.int32(0x7F800000)
"""The bits of infinity; numbers that are none lie above."""


@compiled
def round_row(
    values: int,
    count: int,
    peak: float,
    codes: int,
    padded: int,
    step: int,
    totals: int,
    group_size: int,
    groups: int,
) -> None:
    """Round ``count`` float32 to codes of one step, ``absmax / peak``.

    ``values``, ``codes``, ``step`` and ``totals`` are addresses. Codes up to ``padded`` are 0. With
    a ``group_size`` the sum of each group's codes is kept as float32, and 0 up to ``groups``.
    A row with an infinity or no number has such a step, so that nothing of it looks sound.
    """
    x, out = floats(values, count), shorts(codes, padded)
    bits, largest = ints(values, count), np.int32(0)
    for index in range(count):
        largest = max(largest, bits[index] & np.int32(0x7FFFFFFF))
    size = max(float_of_bits(largest) / np.float32(peak), _SMALLEST)
    if largest >= _INFINITE:
        size = np.float32(np.nan)
    floats(step, 1)[0] = size
    factor = np.float32(1.0) / size if largest < _INFINITE else np.float32(0.0)
    if largest >= _INFINITE:
        for index in range(count):
            out[index] = 0
    elif peak == INT8:
        for index in range(count):
            code = np.rint(x[index] / size)
            out[index] = np.int16(min(max(code, np.float32(-128.0)), np.float32(127.0)))
    else:
        for index in range(count):
            out[index] = np.int16(np.int32(np.rint(x[index] * factor)))
    for index in range(count, padded):
        out[index] = 0
    if group_size:
        sums = floats(totals, groups)
        for group in range(groups):
            sums[group] = 0.0
        for part in range(padded // _PART):
            total = np.int32(0)
            for index in range(_PART):
                total += np.int32(out[part * _PART + index])
            sums[part * _PART // group_size] += np.float32(total)
