"""Softmax of one query, online over blocks of positions.

As in Milakov & Gimelshein 2018, arXiv 1805.02867. A result is the sum of values, the largest score
and the sum of weights, ``size + 2`` float32.
"""

import numpy as np

from compression.kernels.attention_tiles import POSITIONS, exponentials, largest_of
from compression.kernels.compiling import compiled
from compression.kernels.exponential import exponential
from compression.kernels.memory import floats

_NOTHING = np.float32(-1e30)
"""Below every score; finite, so that differences stay numbers."""

_largest = largest_of(POSITIONS)
_exponentials = exponentials(POSITIONS)


@compiled
def begin(place, size):
    """Begin a result with nothing."""
    result = floats(place, size + 2)
    for index in range(size):
        result[index] = 0.0
    result[size], result[size + 1] = _NOTHING, np.float32(0.0)


@compiled
def weigh(place, hidden, seen, size, result):
    """Turn one query's :data:`POSITIONS` scores into weights, and keep their sum.

    What it does not see, or is beyond the last key, weighs nothing.
    """
    weights = floats(place, POSITIONS)
    if seen <= hidden:
        for index in range(POSITIONS):
            weights[index] = 0.0
        return
    for index in range(min(hidden, POSITIONS)):
        weights[index] = _NOTHING
    for index in range(max(0, seen), POSITIONS):
        weights[index] = _NOTHING
    largest = max(result[size], _largest(place))
    if largest != result[size]:
        factor = exponential(result[size] - largest)
        for channel in range(size):
            result[channel] *= factor
        result[size + 1] *= factor
        result[size] = largest
    result[size + 1] += _exponentials(place, largest)


@compiled
def merge(place: int, slots: int, slot_stride: int, size: int, out: int) -> None:
    """Write ``size`` float32: the weighted mean of values from the results of ``slots`` parts."""
    mixed = floats(out, size)
    largest = _NOTHING
    for slot in range(slots):
        largest = max(largest, floats(place + slot * slot_stride, size + 2)[size])
    for channel in range(size):
        mixed[channel] = 0.0
    total = np.float32(0.0)
    for slot in range(slots):
        part = floats(place + slot * slot_stride, size + 2)
        if part[size + 1] == np.float32(0.0):
            continue
        factor = exponential(part[size] - largest)
        total += factor * part[size + 1]
        for channel in range(size):
            mixed[channel] += factor * part[channel]
    for channel in range(size):
        mixed[channel] /= total
