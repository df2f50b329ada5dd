"""A part of the rows of one weight times all rows of inputs."""

from typing import Any

from compression.kernels.compiling import compiled, compiled_as
from compression.kernels.grouped_tile import PART, grouped_tile
from compression.kernels.memory import floats, halves, widen
from compression.kernels.tiles import bf16_tile, int8_tile
from compression.schemes import GROUPED_ROWS

LONGEST = 4096
"""Columns of int8 whose sums cannot overflow 32 bits where vectors are shortest, of eight lanes."""
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


int8_blocks = _blocks("int8_blocks", int8_tile)
bf16_blocks = _blocks("bf16_blocks", bf16_tile)


def _grouped_blocks(bits: int) -> Any:
    """Return the loop over tiles of a weight with a scale a group."""
    one, four = grouped_tile(bits, 1), grouped_tile(bits, 4)

    @compiled_as(f"int{bits}_blocks")
    def run(
        weight, stride, scales, zeros, groups, x, x_stride, totals, columns, count, inputs, out
    ):
        """Write ``out [inputs, count]``, float32, for ``count`` rows of the weight, whole tiles.

        ``stride`` is that of a tile.
        """
        parts, shift = columns // PART, 0
        while groups << shift < parts:
            shift += 1
        fours = inputs - inputs % 4
        block = max(4, _BLOCK_BYTES // x_stride // 4 * 4)
        t = 4 * parts
        for start in range(0, fours, block):
            stop = min(fours, start + block)
            for tile in range(count // GROUPED_ROWS):
                w, row = weight + tile * stride, tile * GROUPED_ROWS
                s, z = scales + 2 * row * groups, zeros + row * groups
                for first in range(start, stop, 4):
                    four(
                        w, s, z, parts, shift, x + first * x_stride, x_stride, totals + first * t,
                        t, out + 4 * (first * count + row), count,
                    )  # fmt: skip
        for each in range(fours, inputs):
            for tile in range(count // GROUPED_ROWS):
                w, row = weight + tile * stride, tile * GROUPED_ROWS
                one(
                    w, scales + 2 * row * groups, zeros + row * groups, parts, shift,
                    x + each * x_stride, x_stride, totals + each * t, t,
                    out + 4 * (each * count + row), count,
                )  # fmt: skip

    return run


int4_blocks, int5_blocks = _grouped_blocks(4), _grouped_blocks(5)


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
def scatter(scales, bias, first, count, steps, inputs, y, y_stride, adds, sums, pitch):
    """Give sums their scales, steps and bias, and write them where they belong.

    Those of the next input are ``pitch`` numbers further on.
    ``scales`` of rows, ``bias`` and ``steps`` of inputs are addresses, 0 where there are none.
    """
    scale, more = halves(scales + 2 * first, count), halves(bias + 2 * first, count)
    for each in range(inputs):
        mine = floats(sums + 4 * each * pitch, count)
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
