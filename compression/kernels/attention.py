"""Attention of several queries over the kept keys and values of one head; functions of codecs.

A single query reads what is kept as it lies (:mod:`compression.kernels.attention_row`); several
share what is decoded once for them.
"""

from typing import Any

from compression.kernels.attention_integers import MOST_CHANNELS, score_integers, sum_integers
from compression.kernels.attention_tiles import (
    DECODED,
    INT4,
    INT8,
    PLAIN,
    POSITIONS,
    score_tile,
    transposed,
    value_tile,
)
from compression.kernels.compiling import call, compiled, compiled_as, linked
from compression.kernels.integer_tiles import CHANNELS, HAS_QUADS
from compression.kernels.kv import recall
from compression.kernels.llvm import LANES
from compression.kernels.memory import floats
from compression.kernels.softmax import begin, weigh


def _scores_of(kind: int) -> Any:
    """Return a function that covers any number of queries with tiles of up to four."""
    one, two, three, four = (score_tile(kind, count) for count in (1, 2, 3, 4))

    @compiled_as(f"scores_of_{kind}")
    def run(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out):
        first = 0
        while first < num:
            query, place = queries + 4 * first * size, out + 4 * first * POSITIONS
            if num - first >= 4:
                four(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                     POSITIONS)  # fmt: skip
            elif num - first == 3:
                three(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                      POSITIONS)  # fmt: skip
            elif num - first == 2:
                two(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                    POSITIONS)  # fmt: skip
            else:
                one(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                    POSITIONS)  # fmt: skip
            first += 4

    return run


def _sums_of(kind: int) -> Any:
    """Return the same for values."""
    one, two, three, four = (value_tile(kind, count) for count in (1, 2, 3, 4))

    @compiled_as(f"sums_of_{kind}")
    def run(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out):
        first, pitch = 0, 4 * (size + 2)
        while first < num:
            weight, place = weights + 4 * first * POSITIONS, out + first * pitch
            if num - first >= 4:
                four(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                     ahead, place, pitch)  # fmt: skip
            elif num - first == 3:
                three(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                      ahead, place, pitch)  # fmt: skip
            elif num - first == 2:
                two(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                    ahead, place, pitch)  # fmt: skip
            else:
                one(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                    ahead, place, pitch)  # fmt: skip
            first += 4

    return run


_plain_scores, _plain_sums = _scores_of(PLAIN), _sums_of(PLAIN)
_int8_scores, _int8_sums = _scores_of(INT8), _sums_of(INT8)
_int4_scores, _int4_sums = _scores_of(INT4), _sums_of(INT4)


@linked(12)
def _score_plain(
    queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _plain_scores(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _sum_plain(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _plain_sums(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _score_int8(
    queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    if size % LANES == 0 and size <= MOST_CHANNELS:
        score_integers(
            queries, num, size, keys, stride, scales, scale_stride, count, ahead, out, scratch
        )
    else:
        _int8_scores(
            queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out
        )


@linked(12)
def _sum_int8(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    if HAS_QUADS and size % CHANNELS == 0:
        sum_integers(
            weights, num, size, values, stride, scales, scale_stride, count, ahead, out, scratch
        )
    else:
        _int8_sums(
            weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out
        )


@linked(12)
def _score_int4(
    queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _int4_scores(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _sum_int4(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _int4_sums(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out)


_mix_one, _mix_four = value_tile(DECODED, 1), value_tile(DECODED, 4)


@linked(8)
def _mix(weights, pitch, num, size, values, count, out, out_pitch):
    first = 0
    while first < num:
        weight, place = weights + 4 * first * pitch, out + first * out_pitch
        if num - first >= 4:
            _mix_four(weight, pitch, size, values, 4 * size, 0, 0, size, count, 0, place,
                      out_pitch)  # fmt: skip
            first += 4
        else:
            _mix_one(weight, pitch, size, values, 4 * size, 0, 0, size, count, 0, place,
                      out_pitch)  # fmt: skip
            first += 1


SCORES = (_score_plain, _score_int8, _score_int4)
"""By how keys are held: queries, their number, size of a head, keys, stride, scales, stride of
scales, size of a group, number of keys, where those lie that are read next, scores, memory to work
in."""
SUMS = (_sum_plain, _sum_int8, _sum_int4)
"""The same for values, with weights and sums."""
MIX = _mix
"""Adds weighted sums of ``count`` float32 ``[size]`` to ``num`` of them: weights, numbers from one
sum's to the next's, ``num``, ``size``, values, ``count``, sums, bytes from one to the next."""

_transposed = transposed(POSITIONS)


@compiled
def attend(
    queries, query_stride, rows, per_head, size, position, window, start, stop,
    key, value, head, layout, mix, out, out_stride, scratch,
):  # fmt: skip
    """Attend from ``rows`` queries of each of ``per_head`` query heads to positions ``start…stop``.

    The first row is at ``position``, the next one after it; a row sees positions up to its own, the
    last ``window`` of them (0: all). ``layout`` holds kinds, strides, and groups of keys and
    values, ``mix`` is the address of :data:`MIX`. ``out`` gets a result of
    :mod:`compression.kernels.softmax` for each row and head: to be merged with those of other
    positions.
    """
    num = rows * per_head
    decoded = scratch + 4 * POSITIONS * size
    own = decoded + 4 * POSITIONS * size
    weights = own + 4 * num * size
    results = weights + 4 * num * POSITIONS
    _gather(queries, query_stride, rows, per_head, size, own, results)
    first = max(start, position - window + 1) if window else start
    for block in range(first, stop, POSITIONS):
        count = min(POSITIONS, stop - block)
        keys = key[0] + block * layout[1] + head * layout[2]
        key_scales = key[1] + (block * layout[3] + head) * 2 * layout[4]
        values = value[0] + block * layout[7] + head * layout[8]
        value_scales = value[1] + (block * layout[9] + head) * 2 * layout[10]
        _decode(layout, 0, keys, key_scales, count, size, decoded)
        # What lay here before may be numbers that the processor is slow with.
        _clear(decoded + 4 * count * size, (POSITIONS - count) * size)
        _transposed(decoded, size, scratch)
        _decode(layout, 6, values, value_scales, count, size, decoded)
        _clear(weights, num * POSITIONS)
        # Scores are sums of channels of keys, weighted by a query's: a vector is keys.
        call(mix, (own, size, num, POSITIONS, scratch, size, weights, 4 * POSITIONS))
        for each in range(num):
            row = each // per_head
            seen = min(count, position + row + 1 - block)
            hidden = max(0, position + row - window + 1 - block) if window else 0
            result = floats(results + 4 * each * (size + 2), size + 2)
            weigh(weights + 4 * each * POSITIONS, hidden, seen, size, result)
        call(mix, (weights, POSITIONS, num, size, decoded, count, results, 4 * (size + 2)))
    for row in range(rows):
        source = floats(results + 4 * row * per_head * (size + 2), per_head * (size + 2))
        target = floats(out + row * out_stride, per_head * (size + 2))
        for index in range(per_head * (size + 2)):
            target[index] = source[index]


@compiled
def _gather(queries, query_stride, rows, per_head, size, own, results):
    """Put all queries side by side and begin their results with nothing."""
    for row in range(rows):
        source = floats(queries + row * query_stride, per_head * size)
        target = floats(own + 4 * row * per_head * size, per_head * size)
        for index in range(per_head * size):
            target[index] = source[index]
    for each in range(rows * per_head):
        begin(results + 4 * each * (size + 2), size)


@compiled
def _clear(place, count):
    values = floats(place, count)
    for index in range(count):
        values[index] = 0.0


@compiled
def _decode(layout, half, place, scales, count, size, out):
    for index in range(count):
        recall(
            layout[half], place + index * layout[half + 1],
            scales + index * layout[half + 3] * 2 * layout[half + 4], layout[half + 5], size,
            out + 4 * index * size,
        )  # fmt: skip
