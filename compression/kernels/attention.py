"""Attention of several queries over the kept keys and values of one head, decoded once for all.

A single query reads what is kept as it lies (:mod:`compression.kernels.attention_row`).
"""

from compression.kernels.attention_tiles import DECODED, POSITIONS, transposed, value_tile
from compression.kernels.compiling import call, compiled, linked
from compression.kernels.kv import recall
from compression.kernels.memory import floats
from compression.kernels.softmax import begin, weigh

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
