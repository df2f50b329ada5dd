"""Keys and values of one head as their codecs keep them: the twins of :mod:`compression.kv`."""

import numpy as np

from compression.kernels.attention_tiles import INT8, PLAIN
from compression.kernels.compiling import compiled
from compression.kernels.memory import (
    bytes_at,
    codes,
    float_of_bits,
    floats,
    halves,
    ints,
    narrow,
    widen,
)

_TINY = np.float32(1.1754944e-38)
_INFINITE = np.float32(np.inf)
_NO_NUMBER = np.uint16(0x7FC0)
"""A bf16 NaN: the scale of what cannot be rounded, so that nothing sound is read back."""


@compiled
def rotate(x: int, size: int, block: int) -> None:
    """Rotate ``size`` float32 at an address by Hadamard matrices of ``block``, in place."""
    values = floats(x, size)
    scale = np.float32(1.0 / np.sqrt(block))
    for start in range(0, size, block):
        width = 1
        while width < block:
            for first in range(start, start + block, 2 * width):
                for index in range(first, first + width):
                    left, right = values[index], values[index + width]
                    values[index], values[index + width] = left + right, left - right
            width *= 2
    for index in range(size):
        values[index] *= scale


@compiled
def keep(kind: int, x: int, size: int, place: int, scales: int, groups: int) -> None:
    """Write one head of ``size`` float32 as its codec keeps it.

    ``place`` is the address of its codes and ``scales`` that of its scale, or of the scale and
    minimum of each of its ``groups``.
    """
    values = floats(x, size)
    if kind == PLAIN:
        plain = halves(place, size)
        for index in range(size):
            plain[index] = narrow(values[index])
    elif kind == INT8:
        kept = codes(place, size)
        largest = _peak(x, 0, size)
        if not largest < _INFINITE:
            halves(scales, 1)[0] = _NO_NUMBER
            for index in range(size):
                kept[index] = 1
            return
        halves(scales, 1)[0] = narrow(max(largest / np.float32(127.0), _TINY))
        scale = widen(halves(scales, 1)[0])
        for index in range(size):
            code = np.rint(values[index] / scale)
            kept[index] = np.int8(min(max(code, np.float32(-127.0)), np.float32(127.0)))
    else:
        _keep_int4(x, size, place, scales, groups)


@compiled
def _peak(x: int, first: int, stop: int) -> float:
    """Return the largest absolute value; infinity or NaN where there is one of them."""
    bits, largest = ints(x, stop), np.int32(0)
    for index in range(first, stop):
        largest = max(largest, bits[index] & np.int32(0x7FFFFFFF))
    return float_of_bits(largest)


@compiled
def _keep_int4(x: int, size: int, place: int, scales: int, groups: int) -> None:
    values, packed = floats(x, size), bytes_at(place, size // 2)
    ranges = halves(scales, 2 * groups)
    width = size // groups
    for index in range(size // 2):
        packed[index] = 0
    for group in range(groups):
        if not _peak(x, group * width, (group + 1) * width) < _INFINITE:
            ranges[2 * group] = ranges[2 * group + 1] = _NO_NUMBER
            continue
        low = high = values[group * width]
        for index in range(group * width, (group + 1) * width):
            low, high = min(low, values[index]), max(high, values[index])
        ranges[2 * group + 1] = narrow(low)
        low = widen(ranges[2 * group + 1])
        ranges[2 * group] = narrow(max((high - low) / np.float32(15.0), _TINY))
        scale = widen(ranges[2 * group])
        for index in range(group * width, (group + 1) * width):
            code = np.rint((values[index] - low) / scale)
            nibble = np.uint8(min(max(code, np.float32(0.0)), np.float32(15.0)))
            if index < size // 2:
                packed[index] |= nibble
            else:
                packed[index - size // 2] |= np.uint8(nibble << np.uint8(4))


@compiled
def recall(kind: int, place: int, scales: int, groups: int, size: int, out: int) -> None:
    """Write one head of ``size`` float32 as its codec gives it back, rotated where it rotates."""
    values = floats(out, size)
    if kind == PLAIN:
        plain = halves(place, size)
        for index in range(size):
            values[index] = widen(plain[index])
    elif kind == INT8:
        kept, scale = codes(place, size), widen(halves(scales, 1)[0])
        for index in range(size):
            values[index] = np.float32(kept[index]) * scale
    else:
        packed, ranges = bytes_at(place, size // 2), halves(scales, 2 * groups)
        for index in range(size // 2):
            values[index] = np.float32(packed[index] & np.uint8(15))
            values[index + size // 2] = np.float32(packed[index] >> np.uint8(4))
        width = size // groups
        for group in range(groups):
            scale, low = widen(ranges[2 * group]), widen(ranges[2 * group + 1])
            for index in range(group * width, (group + 1) * width):
                values[index] = values[index] * scale + low
