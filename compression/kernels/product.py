"""A part of the rows of one weight times all rows of inputs."""

from typing import Any

import numpy as np

from compression.kernels.compiling import compiled
from compression.kernels.memory import floats, halves, widen
from compression.kernels.tiles import bf16_tile, int4_tile, int8_tile

LONGEST = 4096
"""Columns of int8 whose sum cannot overflow 32 bits."""


def _blocks(one: Any, one_by_four: Any, two_by_four: Any) -> Any:
    """Return the loop over tiles of a weight that has no scales of its own."""

    @compiled
    def run(weight, stride, x, x_stride, columns, count, inputs, out):
        """Write ``out [inputs, count]``, float32, for ``count`` rows of the weight."""
        sums = floats(out, inputs * count)
        held = np.empty(8, np.float32)
        place = held.ctypes.data
        fours = inputs - inputs % 4
        pairs = count - count % 2
        for first in range(0, fours, 4):
            values = x + first * x_stride
            for row in range(0, pairs, 2):
                two_by_four(weight + row * stride, stride, values, x_stride, columns, place)
                for each in range(4):
                    sums[(first + each) * count + row] = held[2 * each]
                    sums[(first + each) * count + row + 1] = held[2 * each + 1]
            if pairs < count:
                one_by_four(weight + pairs * stride, stride, values, x_stride, columns, place)
                for each in range(4):
                    sums[(first + each) * count + pairs] = held[each]
        for each in range(fours, inputs):
            values = x + each * x_stride
            for row in range(count):
                where = out + 4 * (each * count + row)
                one(weight + row * stride, stride, values, x_stride, columns, where)

    return run


def _grouped_blocks(one: Any, one_by_four: Any, two_by_four: Any) -> Any:
    """Return the same loop for int4 groups."""

    @compiled
    def run(
        weight, stride, scales, zeros, groups, x, x_stride, totals, columns, count, inputs, out
    ):
        """Write ``out [inputs, count]``, float32, for ``count`` rows of the weight."""
        sums = floats(out, inputs * count)
        held = np.empty(8, np.float32)
        place = held.ctypes.data
        fours = inputs - inputs % 4
        pairs = count - count % 2
        t = 4 * groups
        for first in range(0, fours, 4):
            values, sizes = x + first * x_stride, totals + first * t
            for row in range(0, pairs, 2):
                two_by_four(
                    weight + row * stride, stride, scales + 2 * row * groups,
                    zeros + row * groups, groups, values, x_stride, sizes, t, columns, place,
                )  # fmt: skip
                for each in range(4):
                    sums[(first + each) * count + row] = held[2 * each]
                    sums[(first + each) * count + row + 1] = held[2 * each + 1]
            if pairs < count:
                one_by_four(
                    weight + pairs * stride, stride, scales + 2 * pairs * groups,
                    zeros + pairs * groups, groups, values, x_stride, sizes, t, columns, place,
                )  # fmt: skip
                for each in range(4):
                    sums[(first + each) * count + pairs] = held[each]
        for each in range(fours, inputs):
            values, sizes = x + each * x_stride, totals + each * t
            for row in range(count):
                one(
                    weight + row * stride, stride, scales + 2 * row * groups,
                    zeros + row * groups, groups, values, x_stride, sizes, t, columns,
                    out + 4 * (each * count + row),
                )  # fmt: skip

    return run


int8_blocks = _blocks(int8_tile(1, 1), int8_tile(1, 4), int8_tile(2, 4))
bf16_blocks = _blocks(bf16_tile(1, 1), bf16_tile(1, 4), bf16_tile(2, 4))
int4_blocks_32 = _grouped_blocks(int4_tile(1, 1, 32), int4_tile(1, 4, 32), int4_tile(2, 4, 32))
int4_blocks_64 = _grouped_blocks(int4_tile(1, 1, 64), int4_tile(1, 4, 64), int4_tile(2, 4, 64))
int4_blocks_128 = _grouped_blocks(int4_tile(1, 1, 128), int4_tile(1, 4, 128), int4_tile(2, 4, 128))


@compiled
def int8_sums(w, stride, columns, count, x, x_stride, inputs, sums):
    """Write exact sums; the columns are taken in parts whose sums cannot overflow."""
    size = count * inputs
    total, more = floats(sums, size), floats(sums + 4 * size, size)
    int8_blocks(w, stride, x, x_stride, min(columns, LONGEST), count, inputs, sums)
    for start in range(LONGEST, columns, LONGEST):
        part, place = min(LONGEST, columns - start), x + 2 * start
        int8_blocks(w + start, stride, place, x_stride, part, count, inputs, sums + 4 * size)
        for index in range(size):
            total[index] += more[index]


@compiled
def scatter(scales, bias, first, count, steps, inputs, y, y_stride, adds, sums):
    """Give sums their scales, steps and bias, and write them where they belong.

    ``scales`` of rows, ``bias`` and ``steps`` of inputs are addresses, 0 where there are none.
    """
    scale, more = halves(scales + 2 * first, count), halves(bias + 2 * first, count)
    for each in range(inputs):
        mine = floats(sums + 4 * each * count, count)
        out = floats(y + each * y_stride + 4 * first, count)
        if steps:
            step = floats(steps + 4 * each, 1)[0]
            for row in range(count):
                mine[row] *= step
        if scales:
            for row in range(count):
                mine[row] *= widen(scale[row])
        if bias:
            for row in range(count):
                mine[row] += widen(more[row])
        if adds:
            for row in range(count):
                out[row] += mine[row]
        else:
            for row in range(count):
                out[row] = mine[row]
