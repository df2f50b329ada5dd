"""Attention of a single query over int8 keys and values, in integers.

Queries become int16 and weights two planes of unsigned bytes, so that no key or value is made a
float. What is rounded so is 15 bits of a query's largest channel and 16 of a block's largest
weight: far below what int8 rounds.
"""

import numpy as np

from compression.kernels.attention_row import ready_bytes
from compression.kernels.attention_tiles import POSITIONS
from compression.kernels.compiling import compiled
from compression.kernels.integer_tiles import LEAST, round_weights, score_tile, value_tile
from compression.kernels.memory import (
    float_of_bits,
    floats,
    halves,
    ints,
    shorts,
    widen,
)

MOST_CHANNELS = 512
"""Of a head: products of a query and a key with more could leave int32."""
_MOST_QUERIES = 3
"""Queries of a tile; their sums and those of as many keys or channels fit the registers."""
_QUERY_STEPS = np.float32(32767.0)

_score_one, _score_two, _score_three = (score_tile(count) for count in (1, 2, 3))
_sum_one, _sum_two, _sum_three = (value_tile(count) for count in (1, 2, 3))


@compiled
def _round_query(query, size, out):
    """Write int16 of ``size`` float32 and return what they are to be multiplied by.

    That is infinite or NaN where one of them is, so that nothing sound is made of them.
    """
    bits, values, rounded = ints(query, size), floats(query, size), shorts(out, size)
    peak = np.int32(0)
    for index in range(size):
        peak = max(peak, bits[index] & np.int32(0x7FFFFFFF))
    scale = max(float_of_bits(peak), LEAST) / _QUERY_STEPS
    inverse = np.float32(1.0) / scale
    for index in range(size):
        rounded[index] = np.int16(np.int32(np.rint(values[index] * inverse)))
    return scale


@compiled
def round_queries(queries, heads, per_head, size, out):
    """Write each head's queries as int16 and, behind those of a head, a float32 factor of each."""
    for head in range(heads):
        place = out + head * ready_bytes(per_head, size)
        factors = floats(place + 2 * per_head * size, per_head)
        for each in range(per_head):
            query = queries + 4 * (head * per_head + each) * size
            factors[each] = _round_query(query, size, place + 2 * each * size)


@compiled
def _widen_scales(scales, stride, count, out):
    """Write the bf16 scales of ``count`` tokens as float32, 0 up to :data:`POSITIONS`."""
    found = floats(out, POSITIONS)
    for index in range(count, POSITIONS):
        found[index] = 0.0
    for index in range(count):
        found[index] = widen(halves(scales + index * stride, 1)[0])


@compiled
def score_integers(
    ready, num, size, keys, stride, scales, scale_stride, count, ahead, out, scratch
):
    """Write the products of ``num`` rounded heads with ``count`` keys, :data:`POSITIONS` a head."""
    factors, found = floats(scratch, POSITIONS), scratch + 4 * POSITIONS
    of_queries = floats(ready + 2 * num * size, num)
    _widen_scales(scales, scale_stride, count, scratch)
    for first in range(0, num, _MOST_QUERIES):
        some, rounded = min(num - first, _MOST_QUERIES), ready + 2 * first * size
        if some == 1:
            _score_one(rounded, size, keys, stride, count, ahead, found)
        elif some == 2:
            _score_two(rounded, size, keys, stride, count, ahead, found)
        else:
            _score_three(rounded, size, keys, stride, count, ahead, found)
        for each in range(first, first + some):
            products = ints(found + 4 * (each - first) * POSITIONS, POSITIONS)
            scores = floats(out + 4 * each * POSITIONS, POSITIONS)
            for index in range(POSITIONS):
                scores[index] = np.float32(products[index]) * (of_queries[each] * factors[index])


@compiled
def sum_integers(
    weights, num, size, values, stride, scales, scale_stride, count, ahead, out, scratch
):
    """Add weighted values to ``num`` float32 heads at ``out``, each with two numbers behind it."""
    planes, found = scratch + 4 * POSITIONS, scratch + (4 + 2 * _MOST_QUERIES) * POSITIONS
    _widen_scales(scales, scale_stride, count, scratch)
    for first in range(0, num, _MOST_QUERIES):
        some, weight = min(num - first, _MOST_QUERIES), weights + 4 * first * POSITIONS
        of_one = of_two = of_three = round_weights(weight, scratch, planes)
        if some > 1:
            of_two = round_weights(weight + 4 * POSITIONS, scratch, planes + 2 * POSITIONS)
        if some > 2:
            of_three = round_weights(weight + 8 * POSITIONS, scratch, planes + 4 * POSITIONS)
        if some == 1:
            _sum_one(planes, size, values, stride, count, ahead, found)
        elif some == 2:
            _sum_two(planes, size, values, stride, count, ahead, found)
        else:
            _sum_three(planes, size, values, stride, count, ahead, found)
        scale = (of_one, of_two, of_three)
        for each in range(some):
            sums = ints(found + 4 * each * size, size)
            result = floats(out + 4 * (first + each) * (size + 2), size)
            for channel in range(size):
                result[channel] += np.float32(sums[channel]) * scale[each]
