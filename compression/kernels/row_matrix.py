"""Products of weights that lie row by row with many inputs, on the matrix unit: int8 and bf16.

The first factor are rows of the weight as they lie, the second 16 inputs: blocks of 64 bytes, of
each its planes, of a plane a tile whose row holds four bytes of every input.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from compression.kernels.compiling import compiled_as
from compression.kernels.llvm import F32, I16, I32, Code, long, wide
from compression.kernels.matrix_unit import (
    BF16_TIMES_BF16,
    INT8_TIMES_INT8,
    TILE,
    TILE_BYTES,
    TileCode,
    release_tiles,
)

_BYTES = TILE * TILE_BYTES
_INTS, _FLOATS = wide(I32, TILE), wide(F32, TILE)


@intrinsic
def _configure(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        TileCode(builder).configure("row_tiles", [TILE] * 8, [TILE_BYTES] * 8)
        return context.get_dummy_value()

    return types.void(), generate


def _sums_tile(tiles: int, planes: int, instruction: str, *, asks: bool) -> Any:
    """Return ``tile(w, stride, x, blocks, sums)``: so many tiles of rows times 16 inputs.

    ``sums`` gets 32 bits each, ``[tiles, planes, 16 rows, 16 inputs]``. One that asks does so for
    as many rows after the next ones, which another thread has often taken: with the first inputs,
    rows are read at the speed of memory.
    """

    @intrinsic
    def tile(typing_context: Any, w: Any, stride: Any, x: Any, blocks: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            w, stride, x, blocks, sums = arguments
            code = TileCode(builder)
            held = [(row, plane) for row in range(tiles) for plane in range(planes)]
            weights = [len(held) + row for row in range(tiles)]
            inputs = [len(held) + tiles + plane for plane in range(planes)]
            for index in range(len(held)):
                code.zero_tile(index)
            after = code.at(w, code.times(stride, 2 * tiles * TILE))

            def add(block: Any) -> None:
                for line in range(tiles * TILE if asks else 0):
                    place = code.times(block, tiles * _BYTES)
                    code.prefetch(code.at(after, place, long(line * TILE_BYTES)), level=2)
                for row, number in enumerate(weights):
                    place = code.at(
                        w, code.times(stride, TILE * row), code.times(block, TILE_BYTES)
                    )
                    code.load_tile(number, place, stride)
                for plane, number in enumerate(inputs):
                    place = code.at(x, code.times(block, planes * _BYTES), long(plane * _BYTES))
                    code.load_tile(number, place, long(TILE_BYTES))
                for index, (row, plane) in enumerate(held):
                    code.multiply_tiles(instruction, index, weights[row], inputs[plane])

            code.steps(long(0), blocks, 1, add)
            for index in range(len(held)):
                code.store_tile(index, code.at(sums, long(index * _BYTES)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return tile


def _result_tile(planes: int, *, integers: bool) -> Any:
    """Return ``tile(sums, steps, scales, bias, adds, count, y, y_stride)``.

    It writes the sums of 16 rows as float32, for the first ``count`` of 16 inputs. Of integers
    those of high bytes count 256 times, an input's are multiplied with its step, a row's with its
    scale. ``sums`` is written over; ``bias`` may be 0.
    """

    @intrinsic
    def tile(
        typing_context: Any, sums: Any, steps: Any, scales: Any, bias: Any, adds: Any, count: Any,
        y: Any, y_stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            sums, steps, scales, bias, adds, count, y, y_stride = arguments
            code = TileCode(builder)
            whole = _whole_integers if integers else _whole_floats
            rows = [whole(code, sums, planes, row * TILE_BYTES) for row in range(TILE)]
            if integers:
                step = code.load(steps, _FLOATS)
                rows = [builder.fmul(row, step) for row in rows]
            for index, vector in enumerate(code.transpose(rows)):
                code.store(vector, code.at(sums, long(index * TILE_BYTES)))
            more = code.bias(bias, TILE)
            scale = ir.Constant(_FLOATS, [1.0] * TILE)
            if integers:
                scale = code.widen(code.load(scales, wide(I16, TILE)))

            def finish(each: Any) -> None:
                totals = code.load(code.at(sums, code.times(each, TILE_BYTES)), _FLOATS)
                place = code.at(y, builder.mul(y_stride, each))
                value = code.rounded(builder.fmul(totals, scale))
                code.write(builder.fadd(value, more), adds, place)

            code.steps(long(0), count, 1, finish)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


def _whole_floats(code: Code, sums: Any, planes: int, offset: int) -> Any:
    """Return a row of sums of bf16, one float32 an input."""
    return code.sum([
        code.load(code.at(sums, long(plane * _BYTES + offset)), _FLOATS) for plane in range(planes)
    ])  # fmt: skip


def _whole_integers(code: Code, sums: Any, planes: int, offset: int) -> Any:
    """Return a row of sums of integers, one float32 an input."""
    found = [
        code.builder.sitofp(code.load(code.at(sums, long(plane * _BYTES + offset)), _INTS), _FLOATS)
        for plane in range(planes)
    ]
    if planes == 1:
        return found[0]
    return code.fma(found[0], ir.Constant(_FLOATS, [256.0] * TILE), found[1])


def _on_unit(name: str, planes: int, instruction: str) -> Any:
    one, two, first_two = (
        _sums_tile(1, planes, instruction, asks=False),
        _sums_tile(2, planes, instruction, asks=False),
        _sums_tile(2, planes, instruction, asks=True),
    )
    result = _result_tile(planes, integers=instruction != BF16_TIMES_BF16)
    size = planes * _BYTES

    @compiled_as(f"{name}_on_unit")
    def run(
        w,
        stride,
        scales,
        bias,
        first,
        count,
        x,
        x_stride,
        steps,
        inputs,
        y,
        y_stride,
        adds,
        scratch,
    ):
        """Multiply ``count`` rows of a weight, whole tiles, with inputs and write the result.

        ``w`` is that of row ``first``; ``scales``, ``bias``, 0 where there is none, and ``y`` are
        those of row 0. ``x_stride`` is that of an input, a block of them being 16 together.
        """
        blocks = stride // TILE_BYTES
        _configure()
        for start in range(0, inputs, TILE):
            values, num = x + start * x_stride, min(TILE, inputs - start)
            for row in range(0, count, 2 * TILE):
                pair, place = count - row > TILE, w + row * stride
                if not pair:
                    one(place, stride, values, blocks, scratch)
                elif start == 0:
                    first_two(place, stride, values, blocks, scratch)
                else:
                    two(place, stride, values, blocks, scratch)
                for half in range(2 if pair else 1):
                    at = first + row + half * TILE
                    result(
                        scratch + half * size, steps + 4 * start, scales + 2 * at,
                        bias + 2 * at if bias else 0, adds, num, y + start * y_stride + 4 * at,
                        y_stride,
                    )  # fmt: skip
        release_tiles()

    return run


int8_on_unit = _on_unit("int8", 2, INT8_TIMES_INT8)
"""Inputs of two planes: codes of int16."""
int8_dynamic_on_unit = _on_unit("int8_dynamic", 1, INT8_TIMES_INT8)
"""Inputs of one plane: codes of int8."""
bf16_on_unit = _on_unit("bf16", 2, BF16_TIMES_BF16)
"""Inputs of two planes: float32 as the sum of two bf16. ``steps`` and ``scales`` are not read."""
