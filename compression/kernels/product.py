"""A part of the rows of one weight times all rows of inputs."""

from typing import Any

from compression.kernels.compiling import compiled, compiled_as
from compression.kernels.memory import floats, halves, widen
from compression.kernels.tiles import bf16_tile, int4_tile, int8_tile

LONGEST = 4096
"""Columns of int8 whose sums of eight lanes cannot overflow 32 bits."""
_BLOCK_BYTES = 20 * 1024
"""Of inputs that are multiplied with one row after another."""


def _blocks(name: str, make: Any) -> Any:
    """Return the loop over tiles of a weight that has no scales of its own.

    Inputs are taken in blocks that stay in a core's first cache while the weight passes by.
    """
    one_by_one, one_by_four, two_by_four = make(1, 1), make(1, 4), make(2, 4)

    @compiled_as(name)
    def run(weight, stride, x, x_stride, columns, count, inputs, out):
        """Write ``out [inputs, count]``, float32, for ``count`` rows of the weight."""
        fours, pairs = inputs - inputs % 4, count - count % 2
        block = max(4, _BLOCK_BYTES // x_stride // 4 * 4)
        for start in range(0, fours, block):
            stop = min(fours, start + block)
            for row in range(0, pairs, 2):
                w = weight + row * stride
                for first in range(start, stop, 4):
                    place = out + 4 * (first * count + row)
                    two_by_four(w, stride, x + first * x_stride, x_stride, columns, place, count)
            if pairs < count:
                w = weight + pairs * stride
                for first in range(start, stop, 4):
                    place = out + 4 * (first * count + pairs)
                    one_by_four(w, stride, x + first * x_stride, x_stride, columns, place, count)
        for each in range(fours, inputs):
            values = x + each * x_stride
            for row in range(count):
                place = out + 4 * (each * count + row)
                one_by_one(weight + row * stride, stride, values, x_stride, columns, place, count)

    return run


def _grouped_blocks(group_size: int) -> Any:
    """Return the same loop for int4 groups."""
    one_by_one, two_by_one = int4_tile(1, 1, group_size), int4_tile(2, 1, group_size)
    one_by_four, two_by_four = int4_tile(1, 4, group_size), int4_tile(2, 4, group_size)

    @compiled_as(f"int4_blocks_{group_size}")
    def run(
        weight, stride, scales, zeros, groups, x, x_stride, totals, columns, count, inputs, out
    ):
        """Write ``out [inputs, count]``, float32, for ``count`` rows of the weight."""
        fours, pairs = inputs - inputs % 4, count - count % 2
        block = max(4, _BLOCK_BYTES // x_stride // 4 * 4)
        t = 4 * groups
        for start in range(0, fours, block):
            stop = min(fours, start + block)
            for row in range(0, pairs, 2):
                w, s, z = weight + row * stride, scales + 2 * row * groups, zeros + row * groups
                for first in range(start, stop, 4):
                    two_by_four(
                        w, stride, s, z, groups, x + first * x_stride, x_stride,
                        totals + first * t, t, columns, out + 4 * (first * count + row), count,
                    )  # fmt: skip
            if pairs < count:
                row = pairs
                w, s, z = weight + row * stride, scales + 2 * row * groups, zeros + row * groups
                for first in range(start, stop, 4):
                    one_by_four(
                        w, stride, s, z, groups, x + first * x_stride, x_stride,
                        totals + first * t, t, columns, out + 4 * (first * count + row), count,
                    )  # fmt: skip
        for each in range(fours, inputs):
            values, sizes = x + each * x_stride, totals + each * t
            for row in range(0, pairs, 2):
                two_by_one(
                    weight + row * stride, stride, scales + 2 * row * groups,
                    zeros + row * groups, groups, values, x_stride, sizes, t, columns,
                    out + 4 * (each * count + row), count,
                )  # fmt: skip
            for row in range(pairs, count):
                one_by_one(
                    weight + row * stride, stride, scales + 2 * row * groups,
                    zeros + row * groups, groups, values, x_stride, sizes, t, columns,
                    out + 4 * (each * count + row), count,
                )  # fmt: skip

    return run


int8_blocks, bf16_blocks = _blocks("int8_blocks", int8_tile), _blocks("bf16_blocks", bf16_tile)
int4_blocks_32, int4_blocks_64 = _grouped_blocks(32), _grouped_blocks(64)
int4_blocks_128 = _grouped_blocks(128)


@compiled
def int8_sums(w, stride, columns, count, x, x_stride, inputs, sums):
    """Write sums, exact in a lane; the columns are taken in parts whose sums cannot overflow."""
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
