"""The innermost loop of products with int4 and int5: 16 rows of a weight times a few inputs.

The weight's rows lie side by side, so that a vector's lanes are rows and no sum goes across lanes.
An input is two planes of signed bytes, ``x = 256 * high + low``, because the processor multiplies
unsigned bytes, such as the codes, with signed ones and sums neighbouring products at once.

A part is 32 columns of the 16 rows. It begins with a chunk of 64 bytes for each eight columns: byte
``b`` is of row ``b // 4``, its low nibble of column ``b % 4`` and its high one of column
``4 + b % 4``. With int5 64 more bytes follow: bit ``q`` of byte ``b`` is the highest bit of row
``b // 4`` and column ``4 * q + b % 4`` of the part.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import F32, I8, I16, I32, Code, long, processor, wide
from compression.schemes import GROUPED_ROWS

PART = 32
"""Columns that are summed as integers before they become float32: the smallest group."""
CHUNK = 8
"""Columns of all rows of a tile whose nibbles lie together."""
CHUNK_BYTES = GROUPED_ROWS * CHUNK // 2
NIBBLES_BYTES = PART // CHUNK * CHUNK_BYTES
"""Of the nibbles of a part; behind them lie the fifth bits."""

_AHEAD = 2048
"""Bytes that are asked for before they are read, where one input reads the weight once."""
_LINE = 64
"""Bytes of a cache line."""
_FEATURES = processor()[1].split(",")
LANES = 16 if "+avx512bw" in _FEATURES else 8 if "+avx2" in _FEATURES else 4
"""Rows that a vector holds."""
HAS_VNNI = {16: "+avx512vnni", 8: "+avxvnni"}.get(LANES) in _FEATURES
_VNNI = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
"""Multiplies four bytes a lane with signed ones and adds the products to the lane."""
HAS_PAIRS = LANES > 4 or "+ssse3" in _FEATURES
_PAIRS = {
    16: "llvm.x86.avx512.pmaddubs.w.512",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
}[LANES]
"""Multiplies two bytes a lane of int16 with signed ones and adds the products: at most
2 * 15 * 128 = 3,840 with int4, 2 * 31 * 128 = 7,936 with int5."""
_MOST_PAIRS = {4: 8, 5: 4}
"""How many such sums int16 holds: 30,720 with int4, 31,744 with int5. Without pairs a part's eight
products a lane are half as much as eight pairs: 31,744 with int5."""
_QUAD = 4
"""Columns of a row that lie together: a lane of 32 bits."""
_BYTES, _INTS = wide(I8, _QUAD * LANES), wide(I32, LANES)
_SHORTS, _FLOATS = wide(I16, _QUAD * LANES), wide(F32, LANES)


def part_bytes(bits: int) -> int:
    """Return the bytes of :data:`PART` columns of a tile of codes of so many bits."""
    return PART * GROUPED_ROWS * bits // 8


def grouped_tile(bits: int, inputs: int) -> Any:
    """Return a tile of 16 rows of int4 or int5 times so many inputs.

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
            firsts = range(0, GROUPED_ROWS, LANES)

            def multiply(firsts: Sequence[int]) -> None:
                """Write the products of the rows whose vectors begin there."""
                sums = [_Sums(code, len(firsts)) for _ in range(inputs)]

                def add(part: Any) -> None:
                    """Add the products of some columns of a group."""
                    place = code.at(w, code.times(part, part_bytes(bits)))
                    if inputs == 1:
                        for line in range(0, part_bytes(bits), _LINE):
                            code.prefetch(code.at(place, long(_AHEAD + line)))
                    exact = _products(code, bits, place, firsts, [
                        code.at(x, code.times(x_stride, each), code.times(part, 2 * PART))
                        for each in range(inputs)
                    ])  # fmt: skip
                    group = builder.mul(builder.lshr(part, shift), long(GROUPED_ROWS))
                    for index, first in enumerate(firsts):
                        row = code.at(group, long(first))
                        factor = code.widen(
                            code.load(code.at(scales, code.times(row, 2)), wide(I16, LANES))
                        )
                        zero = code.load(code.at(zeros, row), wide(I8, LANES))
                        zero = builder.uitofp(zero, _FLOATS)
                        for each in range(inputs):
                            total = code.at(code.times(totals_stride, each), code.times(part, 4))
                            less = builder.fneg(code.load(code.at(totals, total), F32))
                            found = builder.sitofp(exact[each][index], _FLOATS)
                            centred = code.fma(zero, code.splat(less, _FLOATS), found)
                            sums[each].add(index, centred, factor)

                code.steps(long(0), parts, 1, add)
                for each in range(inputs):
                    for index, first in enumerate(firsts):
                        place = code.at(code.times(pitch, each), long(first))
                        code.store(sums[each].get(index), code.at(out, code.times(place, 4)))

            # Several inputs use the codes of one vector of rows again and again; one input is
            # used by all rows at once.
            for some in [firsts] if inputs == 1 else [[first] for first in firsts]:
                multiply(some)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


class _Sums:
    """The running sums of one input, float32 in vectors of rows, in registers."""

    def __init__(self, code: Code, count: int) -> None:
        self._code = code
        zero = ir.Constant(_FLOATS, None)
        self._held = [cgutils.alloca_once_value(code.builder, zero) for _ in range(count)]
        for each in self._held:
            code.builder.store(zero, each)

    def get(self, index: int) -> Any:
        return self._code.builder.load(self._held[index])

    def add(self, index: int, left: Any, right: Any) -> None:
        found = self._code.fma(left, right, self.get(index))
        self._code.builder.store(found, self._held[index])


def _products(
    code: Code, bits: int, w: Any, firsts: Sequence[int], inputs: list[Any]
) -> list[list[Any]]:
    """Return each input's sums of a part for vectors of rows, int32.

    Those of int4 are below 32 * 15 * 2¹⁵ < 2²⁴, which float32 holds; those of int5 are below 2²⁵,
    so that float32 rounds the last bit of the largest.
    """
    builder = code.builder
    codes: list[list[Any]] = [[] for _ in firsts]
    fifths = [_fifths(code, bits, w, first) for first in firsts]
    found = []
    for x in inputs:
        high = [_PartSums(code, bits) for _ in firsts]
        low = [_PartSums(code, bits) for _ in firsts]
        for four in range(PART // _QUAD):
            if len(codes[0]) == four:
                for index, first in enumerate(firsts):
                    place = code.at(w, long(four // 2 * CHUNK_BYTES + first * _QUAD))
                    codes[index] += codes_of_chunk(code, place, fifths[index], four)
            for plane, sums in ((0, high), (PART, low)):
                for index, held in enumerate(codes):
                    sums[index].add(held[four], code.at(x, long(plane + four * _QUAD)))
        eight = ir.Constant(_INTS, [8] * LANES)
        found.append([
            builder.add(builder.shl(upper.get(), eight), lower.get())
            for upper, lower in zip(high, low, strict=True)
        ])  # fmt: skip
    return found


def _fifths(code: Code, bits: int, w: Any, first: int) -> Any | None:
    """Return the highest bits of a part of some rows; None where nibbles are all there is."""
    if bits == 4:
        return None
    return code.load(code.at(w, long(NIBBLES_BYTES + first * _QUAD)), _BYTES)


def codes_of_chunk(code: Code, address: Any, fifths: Any | None, four: int) -> list[Any]:
    """Return the codes of a chunk as two vectors of bytes, four columns a lane.

    The vectors are as wide as ``fifths``, the bits behind the part's nibbles, or as the processor's
    are where there are none; ``four`` counts the part's columns before the chunk in fours.
    """
    kind = _BYTES if fifths is None else fifths.type
    held = code.load(address, kind)
    nibbles = [
        code.builder.and_(held, ir.Constant(kind, [0xF] * kind.count)),
        code.builder.lshr(held, ir.Constant(kind, [4] * kind.count)),
    ]
    if fifths is None:
        return nibbles
    return [
        code.builder.or_(nibble, _sixteens(code, fifths, four + half))
        for half, nibble in enumerate(nibbles)
    ]


def _sixteens(code: Code, fifths: Any, place: int) -> Any:
    """Return 16 in each byte whose bit at a place is set, else 0."""
    builder, kind = code.builder, fifths.type
    # Processors shift no bytes: bits that come from the byte beside are masked away.
    shorts = wide(I16, kind.count // 2)
    by = ir.Constant(shorts, [abs(4 - place)] * shorts.count)
    shift = builder.shl if place < 4 else builder.lshr
    moved = builder.bitcast(shift(builder.bitcast(fifths, shorts), by), kind)
    return builder.and_(moved, ir.Constant(kind, [16] * kind.count))


class _PartSums:
    """Sums of one part and plane of an input for one vector of rows, int32 in the end."""

    def __init__(self, code: Code, bits: int) -> None:
        self._code = code
        self._most = _MOST_PAIRS[bits] if HAS_PAIRS and not HAS_VNNI else PART // _QUAD
        self._count = 0
        self._held: Any | None = None
        self._whole: Any | None = None

    def add(self, codes: Any, x: Any) -> None:
        """Add the products of four columns with the four bytes of an input at an address."""
        self._held = _accumulate(self._code, self._held, codes, x)
        self._count += 1
        if self._count == self._most:
            more = _lanes(self._code, self._held)
            whole = self._whole
            self._whole = more if whole is None else self._code.builder.add(whole, more)
            self._count, self._held = 0, None

    def get(self) -> Any:
        """Return the sums of a whole part, one int32 a row."""
        return self._whole


def _accumulate(code: Code, sums: Any | None, codes: Any, x: Any) -> Any:
    """Return sums, None at first, and the products of codes with four bytes of an input."""
    builder = code.builder
    if not HAS_PAIRS:
        four = builder.sext(code.load(x, wide(I8, _QUAD)), wide(I16, _QUAD))
        more = builder.mul(builder.zext(codes, _SHORTS), code.repeat(four, LANES))
        return more if sums is None else builder.add(sums, more)
    four = code.splat(code.load(x, I32), _INTS)
    if HAS_VNNI:
        sums = ir.Constant(_INTS, None) if sums is None else sums
        return code.call(_VNNI, _INTS, sums, builder.bitcast(codes, _INTS), four)
    more = code.call(_PAIRS, wide(I16, 2 * LANES), codes, builder.bitcast(four, _BYTES))
    return more if sums is None else builder.add(sums, more)


def _lanes(code: Code, sums: Any) -> Any:
    """Return the sums of a part, one int32 a row."""
    if HAS_VNNI:
        return sums
    pairs = code.pair_sums(sums, ir.Constant(sums.type, [1] * sums.type.count))
    return pairs if HAS_PAIRS else code.adjacent_sums(pairs)
