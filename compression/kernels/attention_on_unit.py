"""Attention on the matrix unit, to keys and values that are kept as bf16 or as int8.

The softmax is taken online over blocks of positions (Milakov & Gimelshein 2018, arXiv 1805.02867).
"""

import numpy as np

from compression.kernels.attention_matrix import (
    BLOCK,
    CHANNELS,
    SUMS_BYTES,
    add_values,
    configure,
    kept_keys,
    multiply_keys,
    paired_values,
    split_heads,
    turn,
    weights,
)
from compression.kernels.attention_tiles import INT8, PLAIN, largest_of
from compression.kernels.compiling import compiled, linked
from compression.kernels.exponential import exponential
from compression.kernels.fields import CACHE_FIELDS, LAYOUT_FIELDS
from compression.kernels.matrix_unit import QUAD, TILE, interleave, release_tiles
from compression.kernels.memory import floats, halves, longs, widen

_LINE = 64
"""Bytes of a cache line."""
_NOTHING = np.float32(-1e30)
"""Below every score; finite, so that differences stay numbers."""
_SCORES = 4 * BLOCK
"""Bytes of a query's scores."""
_AT_A_TIME = 4
"""Queries that are written as tiles together."""

_keep_plain, _keep_int8 = kept_keys(PLAIN), kept_keys(INT8)
_pair_plain, _pair_int8 = paired_values(PLAIN), paired_values(INT8)
_weigh_plain, _weigh_scaled = weights(scaled=False), weights(scaled=True)
_largest = largest_of(BLOCK)


def scratch_bytes(size: int, queries: int) -> int:
    """Return the memory of its own that a thread needs for so many queries of a head."""
    whole = -(-queries // TILE) * TILE
    kept = 2 * SUMS_BYTES + 4 * BLOCK * size + _AT_A_TIME * 4 * size + 2 * size
    return kept + (TILE + 2) * _SCORES + whole * (8 * size + _LINE)


@compiled
def _whole(queries):
    return -(-queries // TILE) * TILE


@compiled
def _pitch(size):
    """Return the bytes from one query's result to the next: its sums begin at cache lines."""
    return 4 * size + _LINE


@compiled
def _begin(results, count, size):
    """Begin so many results with nothing."""
    for each in range(count):
        result = floats(results + each * _pitch(size), size + 2)
        for index in range(size):
            result[index] = 0.0
        result[size], result[size + 1] = _NOTHING, np.float32(0.0)


@compiled
def _write_queries(queries, query_stride, per_head, num, size, codes, tiles):
    """Write a head's queries as tiles: of each 32 channels the upper halves, then the lower."""
    for first in range(0, num, _AT_A_TIME):
        for each in range(first, min(num, first + _AT_A_TIME)):
            source = queries + each // per_head * query_stride + 4 * (each % per_head) * size
            split_heads(source, size, codes + (each - first) * 4 * size)
        place = tiles + first // TILE * TILE * 4 * size + first % TILE * QUAD
        interleave(codes, 2 * size, 2, place, size // CHANNELS)


@compiled
def _unpack_keys(keys, layout, count, size, nothing, out):
    """Write ``count`` keys of a head as bf16 ``[64, size]``, zeros behind them."""
    for token in range(BLOCK):
        place = keys + token * layout[1] if token < count else nothing
        if layout[0] == INT8:
            _keep_int8(place, size, out + 2 * token * size)
        else:
            _keep_plain(place, size, out + 2 * token * size)


@compiled
def _unpack_values(values, layout, count, size, nothing, out):
    """Write ``count`` values of a head as tiles of pairs, zeros behind them."""
    for token in range(0, BLOCK, 2):
        first = values + token * layout[7] if token < count else nothing
        second = values + (token + 1) * layout[7] if token + 1 < count else nothing
        tile = token // CHANNELS * 2 * CHANNELS * size + token % CHANNELS * CHANNELS
        if layout[6] == INT8:
            _pair_int8(first, second, size, out + tile)
        else:
            _pair_plain(first, second, size, out + tile)


@compiled
def _widen_scales(scales, kv_heads, count, out):
    found = floats(out, BLOCK)
    for token in range(count):
        found[token] = widen(halves(scales + 2 * token * kv_heads, 1)[0])
    for token in range(count, BLOCK):
        found[token] = 0.0


@compiled
def _weigh(place, hidden, seen, size, layout, scales, result):
    """Turn one query's scores into weights, two bf16 each, and keep their sum.

    What it does not see weighs nothing.
    """
    scores = floats(place, BLOCK)
    if layout[0] == INT8:
        factors = floats(scales, BLOCK)
        for index in range(BLOCK):
            scores[index] *= factors[index]
    if seen <= hidden:
        _clear(place, 2 * BLOCK)
        return
    if hidden > 0 or seen < BLOCK:
        for index in range(BLOCK):
            is_seen = hidden <= index and index < seen
            scores[index] = scores[index] if is_seen else _NOTHING
    sums = floats(result, size + 2)
    largest = max(sums[size], _largest(place))
    if largest != sums[size]:
        factor = exponential(sums[size] - largest)
        for channel in range(size):
            sums[channel] *= factor
        sums[size + 1] *= factor
        sums[size] = largest
    if layout[6] == INT8:
        sums[size + 1] += _weigh_scaled(place, largest, scales + _SCORES)
    else:
        sums[size + 1] += _weigh_plain(place, largest, 0)


@compiled
def _add_block(
    keys, stride, pairs, tiles, num, per_head, size, count, position, window, layout, scales,
    sums, scores, results,
):  # fmt: skip
    """Add what ``num`` queries of a head see of a block; ``position`` is theirs within it.

    What the unit stores is read only after it has begun with the next 16 queries.
    """
    multiply_keys(keys, stride, tiles, size, sums)
    for first in range(0, num, TILE):
        after = first + TILE
        if after < num:
            place = sums + after // TILE % 2 * SUMS_BYTES
            multiply_keys(keys, stride, tiles + after * 4 * size, size, place)
        turn(sums + first // TILE % 2 * SUMS_BYTES, scores)
        for each in range(first, min(num, after)):
            row = each // per_head
            seen = min(count, position + row + 1)
            hidden = position + row + 1 - window if window else 0
            place, result = scores + (each - first) * _SCORES, results + each * _pitch(size)
            _weigh(place, hidden, seen, size, layout, scales, result)
        add_values(scores, pairs, size, results + first * _pitch(size), _pitch(size))


@linked(15)
def _attend(
    queries, query_stride, rows, per_head, size, position, window, start, stop, caches, layouts,
    head, out, out_stride, scratch,
):  # fmt: skip
    num = rows * per_head
    cache, layout = longs(caches, CACHE_FIELDS), longs(layouts, LAYOUT_FIELDS)
    own_keys = scratch + 2 * SUMS_BYTES
    pairs = own_keys + 2 * BLOCK * size
    codes = pairs + 2 * BLOCK * size
    nothing = codes + _AT_A_TIME * 4 * size
    scores = nothing + 2 * size
    scales = scores + TILE * _SCORES
    tiles = scales + 2 * _SCORES
    results = tiles + _whole(num) * 4 * size
    _clear(nothing, size)
    _write_queries(queries, query_stride, per_head, num, size, codes, tiles)
    _begin(results, num, size)
    configure()
    first = max(start, position - window + 1) if window else start
    for block in range(first, stop, BLOCK):
        count = min(BLOCK, stop - block)
        keys, stride = cache[0] + block * layout[1] + head * layout[2], layout[1]
        if count < BLOCK or layout[0] == INT8:
            _unpack_keys(keys, layout, count, size, nothing, own_keys)
            keys, stride = own_keys, 2 * size
        values = cache[2] + block * layout[7] + head * layout[8]
        _unpack_values(values, layout, count, size, nothing, pairs)
        if layout[0] == INT8:
            place = cache[1] + 2 * (block * layout[3] + head)
            _widen_scales(place, layout[3], count, scales)
        if layout[6] == INT8:
            place = cache[3] + 2 * (block * layout[9] + head)
            _widen_scales(place, layout[9], count, scales + _SCORES)
        _add_block(
            keys, stride, pairs, tiles, num, per_head, size, count, position - block, window,
            layout, scales, scratch, scores, results,
        )  # fmt: skip
    release_tiles()
    for each in range(num):
        target = out + each // per_head * out_stride + each % per_head * 4 * (size + 2)
        _copy(results + each * _pitch(size), size + 2, target)


@compiled
def _copy(source, count, target):
    there, copied = floats(source, count), floats(target, count)
    for index in range(count):
        copied[index] = there[index]


@compiled
def _clear(place, size):
    empty = longs(place, size // 4)
    for index in range(size // 4):
        empty[index] = 0


ATTEND_ON_UNIT = _attend
"""As :func:`compression.kernels.attention.attend`, of keys and values kept as bf16 or int8, for
heads of multiples of 32 channels; ``caches`` and ``layouts`` are the addresses of both."""
