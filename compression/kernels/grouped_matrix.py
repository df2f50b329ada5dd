"""Products of int4 and int5 weights with many inputs, on the matrix unit.

The first factor are 16 inputs in their planes as they lie, the second the codes of a part of 16
rows of a weight, unpacked once for all inputs. Sums of a part become float32 with its scales.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.compiling import compiled, compiled_as
from compression.kernels.grouped_tile import (
    CHUNK,
    CHUNK_BYTES,
    NIBBLES_BYTES,
    PART,
    codes_of_chunk,
    part_bytes,
)
from compression.kernels.llvm import F32, I8, I16, I32, long, wide
from compression.kernels.matrix_unit import (
    INT8_TIMES_UINT8,
    QUAD,
    TILE,
    TILE_BYTES,
    TileCode,
    release_tiles,
)
from compression.kernels.memory import floats, halves, widen

UNPACKED = PART * TILE
"""Bytes of a part's codes of 16 rows, unpacked."""
_BYTES, _INTS, _FLOATS = wide(I8, TILE_BYTES), wide(I32, TILE), wide(F32, TILE)
_HIGH, _LOW, _LEFT_HIGH, _LEFT_LOW, _RIGHT = range(5)
_SUMS = TILE * TILE_BYTES
_BEHIND = 1
"""Parts that are multiplied before the sums of one are read: what a tile has just stored is read
several times as slowly. All bits of the number are 1."""


@intrinsic
def configure_grouped(typing_context: Any) -> Any:
    """Set the tiles for :func:`grouped_tile_on_unit`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        rows = [TILE, TILE, TILE, TILE, PART // QUAD, 0, 0, 0]
        columns = [TILE_BYTES, TILE_BYTES, PART, PART, TILE_BYTES, 0, 0, 0]
        TileCode(builder).configure("grouped_tiles", rows, columns)
        return context.get_dummy_value()

    return types.void(), generate


def _unpack(bits: int) -> Any:
    """Return what writes codes of so many bits as the unit reads them."""

    @intrinsic
    def unpack(typing_context: Any, w: Any, parts: Any, out: Any) -> Any:
        """Write the codes of so many parts of 16 rows."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            w, parts, out = arguments
            code = TileCode(builder)

            def unpack_part(part: Any) -> None:
                place = code.at(w, code.times(part, part_bytes(bits)))
                target = code.at(out, code.times(part, UNPACKED))
                fifths = None
                if bits > 4:
                    fifths = code.load(code.at(place, long(NIBBLES_BYTES)), _BYTES)
                for chunk in range(PART // CHUNK):
                    at = code.at(place, long(chunk * CHUNK_BYTES))
                    for half, codes in enumerate(codes_of_chunk(code, at, fifths, 2 * chunk)):
                        to = code.at(target, long((2 * chunk + half) * TILE_BYTES))
                        code.store(codes, to, align=1)

            code.steps(long(0), parts, 1, unpack_part)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return unpack


@intrinsic
def grouped_tile_on_unit(
    typing_context: Any, codes: Any, scales: Any, zeros: Any, parts: Any, shift: Any, x: Any,
    x_stride: Any, totals: Any, totals_stride: Any, sums: Any, out: Any,
) -> Any:  # fmt: skip
    """Write float32 ``[16 inputs, 16 rows]``: products with 16 rows of a weight, unpacked codes.

    The rest is as :func:`compression.kernels.grouped_tile.grouped_tile` takes it; ``sums`` is
    memory for the sums of some parts.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        (codes, scales, zeros, parts, shift, x, x_stride, totals, totals_stride, sums,
         out) = arguments  # fmt: skip
        code = TileCode(builder)
        zero = ir.Constant(_FLOATS, None)
        results = [cgutils.alloca_once_value(builder, zero) for _ in range(TILE)]
        for each in results:
            builder.store(zero, each)
        eight = ir.Constant(_INTS, [8] * TILE)

        def place_of(part: Any) -> Any:
            return code.at(sums, code.times(builder.and_(part, long(_BEHIND)), 2 * _SUMS))

        def multiply(part: Any) -> None:
            """Store the products of one part."""
            place, mine = code.at(x, code.times(part, 2 * PART)), place_of(part)
            code.load_tile(_RIGHT, code.at(codes, code.times(part, UNPACKED)), long(TILE_BYTES))
            for plane, (held, left) in enumerate(((_HIGH, _LEFT_HIGH), (_LOW, _LEFT_LOW))):
                code.load_tile(left, code.at(place, long(plane * PART)), x_stride)
                code.zero_tile(held)
                code.multiply_tiles(INT8_TIMES_UINT8, held, left, _RIGHT)
                code.store_tile(held, code.at(mine, long(plane * _SUMS)))

        def add(part: Any) -> None:
            """Add the products of one part, with its scales."""
            mine = place_of(part)
            group = code.times(builder.lshr(part, shift), TILE)
            factor = code.widen(code.load(code.at(scales, code.times(group, 2)), wide(I16, TILE)))
            less = builder.fneg(
                builder.uitofp(code.load(code.at(zeros, group), wide(I8, TILE)), _FLOATS)
            )
            total = code.at(totals, code.times(part, 4))
            for index, result in enumerate(results):
                high, low = (
                    code.load(code.at(mine, long(plane * _SUMS + index * TILE_BYTES)), _INTS)
                    for plane in range(2)
                )
                found = builder.sitofp(builder.add(builder.shl(high, eight), low), _FLOATS)
                one = code.load(code.at(total, code.times(totals_stride, index)), F32)
                centred = code.fma(less, code.splat(one, _FLOATS), found)
                builder.store(code.fma(factor, centred, builder.load(result)), result)

        few = builder.icmp_signed("<", parts, long(_BEHIND))
        behind = builder.select(few, parts, long(_BEHIND))

        def step(part: Any) -> None:
            multiply(part)
            add(builder.sub(part, behind))

        code.steps(long(0), behind, 1, multiply)
        code.steps(behind, parts, 1, step)
        code.steps(builder.sub(parts, behind), parts, 1, add)
        for index, result in enumerate(results):
            code.store(builder.load(result), code.at(out, long(index * TILE_BYTES)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), generate


@intrinsic
def _write_inputs(
    typing_context: Any, sums: Any, steps: Any, bias: Any, adds: Any, count: Any, y: Any,
    y_stride: Any,
) -> Any:  # fmt: skip
    """Write the sums of 16 rows for ``count`` inputs, each multiplied with its step."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        sums, steps, bias, adds, count, y, y_stride = arguments
        code = TileCode(builder)
        more = code.bias(bias, TILE)

        def finish(each: Any) -> None:
            found = code.load(code.at(sums, code.times(each, TILE_BYTES)), _FLOATS)
            step = code.splat(code.load(code.at(steps, code.times(each, 4)), F32), _FLOATS)
            place = code.at(y, builder.mul(y_stride, each))
            value = code.rounded(builder.fmul(found, step))
            code.write(builder.fadd(value, more), adds, place)

        code.steps(long(0), count, 1, finish)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


@compiled
def _write_some(sums, steps, bias, adds, count, y, y_stride, rows):
    """Do as :func:`_write_inputs`, of the last tile, some of whose rows are not there."""
    more = halves(bias, rows)
    for each in range(count):
        found, out = floats(sums + each * TILE_BYTES, rows), floats(y + each * y_stride, rows)
        step = floats(steps + 4 * each, 1)[0]
        for lane in range(rows):
            value = found[lane] * step
            if bias:
                value += widen(more[lane])
            out[lane] = out[lane] + value if adds else value


def _on_unit(bits: int) -> Any:
    """Return the product of a weight with codes of so many bits."""
    unpack = _unpack(bits)

    @compiled_as(f"int{bits}_on_unit")
    def run(
        w, stride, scales, zeros, groups, bias, first, count, x, x_stride, totals, columns, steps,
        inputs, y, y_stride, adds, scratch,
    ):  # fmt: skip
        """Multiply ``count`` rows of a weight with inputs and write the result.

        ``w``, ``scales`` and ``zeros`` are those of the first row's tile, ``stride`` is a tile's;
        ``bias``, 0 where there is none, and ``y`` are those of row 0.
        """
        parts, shift = columns // PART, 0
        while groups << shift < parts:
            shift += 1
        found = scratch + 2 * (_BEHIND + 1) * _SUMS
        codes = found + _SUMS
        t = 4 * parts
        configure_grouped()
        for tile in range(-(-count // TILE)):
            row = tile * TILE
            at, rows = first + row, min(TILE, count - row)
            more = bias + 2 * at if bias else 0
            unpack(w + tile * stride, parts, codes)
            s, z = scales + 2 * row * groups, zeros + row * groups
            for start in range(0, inputs, TILE):
                grouped_tile_on_unit(
                    codes, s, z, parts, shift, x + start * x_stride, x_stride, totals + start * t,
                    t, scratch, found,
                )  # fmt: skip
                place, num = y + start * y_stride + 4 * at, min(TILE, inputs - start)
                if rows == TILE:
                    _write_inputs(found, steps + 4 * start, more, adds, num, place, y_stride)
                else:
                    _write_some(found, steps + 4 * start, more, adds, num, place, y_stride, rows)
        release_tiles()

    return run


int4_on_unit, int5_on_unit = _on_unit(4), _on_unit(5)
