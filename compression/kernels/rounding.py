"""Inputs of products: codes for integer weights, rounded a row, or two bf16 a number."""

import numpy as np

from compression.kernels.compiling import compiled
from compression.kernels.grouped_tile import PART
from compression.kernels.memory import codes as signed_bytes
from compression.kernels.memory import float_of_bits, floats, halves, ints, narrow, shorts, widen

EXACT = 127 * 256 + 127.0
"""The largest code of inputs whose rounding shall not be seen, 2⁻¹⁶ of the row's peak; its two
bytes are signed numbers between -128 and 127."""
INT8 = 127.5
"""The largest code where inputs are rounded to int8 (W8A8), as compressed-tensors counts it."""

_SMALLEST = np.float32(2.0**-110)
"""A step, so that a row of zeros divides by something that has an inverse."""
_INFINITE = np.int32(0x7F800000)
"""The bits of infinity; numbers that are none lie above."""


@compiled
def _step(values: int, count: int, peak: float) -> float:
    """Return what a code stands for; no number where one of the values is none or infinite."""
    bits, largest = ints(values, count), np.int32(0)
    for index in range(count):
        largest = max(largest, bits[index] & np.int32(0x7FFFFFFF))
    if largest >= _INFINITE:
        return np.float32(np.nan)
    return max(float_of_bits(largest) / np.float32(peak), _SMALLEST)


@compiled
def round_row(values: int, count: int, peak: float, codes: int, padded: int, step: int) -> None:
    """Round ``count`` float32 to codes of one step, ``absmax / peak``.

    ``values``, ``codes`` and ``step`` are addresses. Codes up to ``padded`` are 0.
    A row with an infinity or no number has such a step, so that nothing of it looks sound.
    """
    x, out = floats(values, count), shorts(codes, padded)
    size = _step(values, count, peak)
    floats(step, 1)[0] = size
    factor = np.float32(1.0) / size
    if np.isnan(size):
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


@compiled
def round_to_planes(values: int, count: int, planes: int, step: int, totals: int) -> None:
    """Round ``count`` float32, whole parts, to codes of int16 in two bytes.

    ``values``, ``planes``, ``step`` and ``totals`` are addresses. A code is ``256 * high + low``,
    both signed; each part is its high bytes and then its low ones, and its total is the sum of its
    codes as float32. A row with an infinity or no number has such a step.
    """
    size = _step(values, count, EXACT)
    floats(step, 1)[0] = size
    sums = floats(totals, count // PART)
    if np.isnan(size):
        both = signed_bytes(planes, 2 * count)
        for index in range(2 * count):
            both[index] = 0
        for part in range(count // PART):
            sums[part] = 0.0
        return
    factor = np.float32(1.0) / size
    for part in range(count // PART):
        x = floats(values + 4 * part * PART, PART)
        high = signed_bytes(planes + 2 * part * PART, PART)
        low = signed_bytes(planes + (2 * part + 1) * PART, PART)
        total = np.int32(0)
        for index in range(PART):
            code = np.int32(np.rint(x[index] * factor))
            upper = (code + np.int32(128)) >> np.int32(8)
            high[index] = upper
            low[index] = code - (upper << np.int32(8))
            total += code
        sums[part] = np.float32(total)


@compiled
def round_to_bytes(
    values: int, count: int, peak: float, codes: int, padded: int, step: int
) -> None:
    """Round ``count`` float32 as :func:`round_row` does, to planes of ``padded`` bytes.

    Codes of int8 are one plane, those of int16 a plane of high bytes and one of low bytes.
    """
    size = _step(values, count, peak)
    floats(step, 1)[0] = size
    high, low = signed_bytes(codes, padded), signed_bytes(codes + padded, padded)
    for index in range(count if np.isfinite(size) else 0, padded):
        high[index] = 0
        low[index] = 0
    if np.isfinite(size):
        _round_to_bytes(floats(values, count), count, peak, size, high, low)


@compiled
def _round_to_bytes(x, count, peak, size, high, low):
    """Write codes: those of int8 to ``high``, those of int16 to both."""
    factor = np.float32(1.0) / size
    if peak == INT8:
        for index in range(count):
            code = np.rint(x[index] / size)
            high[index] = np.int8(min(max(code, np.float32(-128.0)), np.float32(127.0)))
        return
    for index in range(count):
        code = np.int32(np.rint(x[index] * factor))
        upper = (code + np.int32(128)) >> np.int32(8)
        high[index] = upper
        low[index] = code - (upper << np.int32(8))


@compiled
def split_row(values: int, count: int, out: int, padded: int) -> None:
    """Write ``count`` float32 as planes of ``padded`` bf16, two, their sums within 2⁻¹⁷ of each."""
    x, high, low = floats(values, count), halves(out, padded), halves(out + 2 * padded, padded)
    for index in range(count):
        upper = narrow(x[index])
        high[index] = upper
        low[index] = narrow(x[index] - widen(upper))
    for index in range(count, padded):
        high[index] = 0
        low[index] = 0
