"""The innermost loop of products with int4: 16 rows of a weight times a few inputs, in LLVM.

The weight's rows lie side by side, so that a vector's lanes are rows and no sum goes across lanes.
An input is two planes of signed bytes, ``x = 256 * high + low``, because the processor multiplies
unsigned bytes, such as the codes, with signed ones and sums neighbouring products at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import F32, I8, I16, I32, Code, long, processor, wide
from compression.schemes import INT4_ROWS

PART = 32
"""Columns that are summed as integers before they become float32: the smallest group."""
CHUNK = 8
"""Columns of all rows of a tile that lie together."""
CHUNK_BYTES = INT4_ROWS * CHUNK // 2

_AHEAD = 2048
"""Bytes that are asked for before they are read, where one input reads the weight once."""
_LINE = 64
"""Bytes of a cache line."""
_FEATURES = processor()[1].split(",")
_LANES = 16 if "+avx512bw" in _FEATURES else 8
"""Rows that a vector holds."""
_QUAD = 4
"""Columns of a row that lie together: a lane of 32 bits."""
_BYTES, _INTS = wide(I8, _QUAD * _LANES), wide(I32, _LANES)
_SHORTS, _FLOATS = wide(I16, _QUAD * _LANES), wide(F32, _LANES)


def int4_tile(inputs: int) -> Any:
    """Return a tile of 16 rows of int4 times so many inputs.

    ``tile(w, scales, zeros, parts, shift, x, x_stride, totals, totals_stride, out, pitch)``:
    addresses and strides in bytes. ``parts`` of :data:`PART` columns are multiplied; a group has
    ``1 << shift`` of them. ``totals`` are the float32 sums of each part of an input. ``out`` is
    float32, the 16 of the next input ``pitch`` numbers further on.
    """

    @intrinsic
    def tile(
        typing_context: Any,
        w: Any,
        scales: Any,
        zeros: Any,
        parts: Any,
        shift: Any,
        x: Any,
        x_stride: Any,
        totals: Any,
        totals_stride: Any,
        out: Any,
        pitch: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            w, scales, zeros, parts, shift, x, x_stride, totals, totals_stride, out, pitch = (
                arguments
            )
            code = Code(builder)
            part_bytes, firsts = PART // CHUNK * CHUNK_BYTES, range(0, INT4_ROWS, _LANES)
            sums = [
                [cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, None)) for _ in firsts]
                for _ in range(inputs)
            ]
            for row in sums:
                for each in row:
                    builder.store(ir.Constant(_FLOATS, None), each)

            def add(part: Any) -> None:
                """Add the products of some columns of a group."""
                group = builder.mul(builder.lshr(part, shift), long(INT4_ROWS))
                place = code.at(w, code.times(part, part_bytes))
                if inputs == 1:
                    for line in range(0, part_bytes, _LINE):
                        code.prefetch(code.at(place, long(_AHEAD + line)))
                for index, first in enumerate(firsts):
                    row = code.at(group, long(first))
                    halves = code.load(code.at(scales, code.times(row, 2)), wide(I16, _LANES))
                    factor = code.widen(halves)
                    zero = builder.uitofp(code.load(code.at(zeros, row), wide(I8, _LANES)), _FLOATS)
                    codes = _codes(code, code.at(place, long(first * _QUAD)))
                    for each in range(inputs):
                        mine = code.at(code.times(x_stride, each), code.times(part, 2 * PART))
                        exact = _exact(code, codes, code.at(x, mine))
                        total = code.at(code.times(totals_stride, each), code.times(part, 4))
                        less = builder.fneg(code.load(code.at(totals, total), F32))
                        centred = code.fma(
                            zero, code.splat(less, _FLOATS), builder.sitofp(exact, _FLOATS)
                        )
                        held = sums[each][index]
                        builder.store(code.fma(centred, factor, builder.load(held)), held)

            code.steps(long(0), parts, 1, add)
            for each in range(inputs):
                for index, first in enumerate(firsts):
                    place = code.at(code.times(pitch, each), long(first))
                    found = builder.load(sums[each][index])
                    code.store(found, code.at(out, code.times(place, 4)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


def _codes(code: Code, address: Any) -> list[Any]:
    """Return the codes of a part as vectors of bytes, four columns a lane."""
    found = []
    for chunk in range(PART // CHUNK):
        held = code.load(code.at(address, long(chunk * CHUNK_BYTES)), _BYTES)
        found.append(code.builder.and_(held, ir.Constant(_BYTES, [0xF] * _BYTES.count)))
        found.append(code.builder.lshr(held, ir.Constant(_BYTES, [4] * _BYTES.count)))
    return found


def _exact(code: Code, codes: list[Any], x: Any) -> Any:
    """Return the sums of a part's products, int32; float32 holds them, too."""
    high, low = _dot(code, codes, x), _dot(code, codes, code.at(x, long(PART)))
    return code.builder.add(code.builder.shl(high, ir.Constant(_INTS, [8] * _LANES)), low)


def _with_vnni(code: Code, codes: list[Any], plane: Any) -> Any:
    """Multiply four pairs of bytes a lane and add them up in one instruction (vpdpbusd)."""
    name, total = f"llvm.x86.avx512.vpdpbusd.{32 * _LANES}", ir.Constant(_INTS, None)
    for index, each in enumerate(codes):
        four = code.splat(code.load(code.at(plane, long(index * _QUAD)), I32), _INTS)
        total = code.call(name, _INTS, total, code.builder.bitcast(each, _INTS), four)
    return total


def _with_pairs(code: Code, codes: list[Any], plane: Any) -> Any:
    """Multiply bytes and add neighbours (vpmaddubsw), then the int16 of eight vectors.

    They are at most 8 * 2 * 15 * 128 = 30,720.
    """
    pairs = wide(I16, 2 * _LANES)
    name = "llvm.x86.avx512.pmaddubs.w.512" if _LANES == 16 else "llvm.x86.avx2.pmadd.ub.sw"
    sums = []
    for index, each in enumerate(codes):
        four = code.splat(code.load(code.at(plane, long(index * _QUAD)), I32), _INTS)
        sums.append(code.call(name, pairs, each, code.builder.bitcast(four, _BYTES)))
    return code.pair_sums(code.sum(sums), ir.Constant(pairs, [1] * pairs.count))


def _with_shorts(code: Code, codes: list[Any], plane: Any) -> Any:
    """Multiply int16 on any processor; eight products are at most 8 * 15 * 128 = 15,360."""
    sums = []
    for index, each in enumerate(codes):
        four = code.load(code.at(plane, long(index * _QUAD)), wide(I8, _QUAD))
        signed = code.repeat(code.builder.sext(four, wide(I16, _QUAD)), _LANES)
        sums.append(code.builder.mul(code.builder.zext(each, _SHORTS), signed))
    total = code.sum(sums)
    pairs = code.pair_sums(total, ir.Constant(_SHORTS, [1] * _SHORTS.count))
    return code.neighbours(pairs)


def _fastest() -> Callable[[Code, list[Any], Any], Any]:
    if "+avx512vnni" in _FEATURES or (_LANES == 8 and "+avxvnni" in _FEATURES):
        return _with_vnni
    return _with_pairs if "+avx2" in _FEATURES else _with_shorts


_dot = _fastest()
