"""The innermost loops of products: a few rows of a weight times a few rows of inputs, in LLVM.

Each tile keeps all its sums in registers. Products of int16 are summed in pairs by one instruction
(pmaddwd, or with what was summed before vpdpwssd), for which LLVM takes the generic form that is
written here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import FLOATS, I8, I16, I32, I64, LANES, ZERO_FLOATS, Code, long, wide
from compression.schemes import INT4_BLOCK, INT4_GROUPS

_AHEAD_INT8 = 2048
_AHEAD_INT4 = 1024
"""Bytes that are asked for before they are read, where one input reads the weight once."""
_LINE = 64
"""Bytes of a cache line."""
_SHORTS, _BYTES = wide(I16, LANES), wide(I8, LANES)
_PAIRS, _PAIR_FLOATS = wide(I32, LANES // 2), wide(FLOATS.element, LANES // 2)


class _Sums:
    """The running sums of a tile, ``rows x inputs``, in registers."""

    def __init__(self, code: Code, rows: int, inputs: int, zero: Any) -> None:
        self._code = code
        self._held = [
            [cgutils.alloca_once_value(code.builder, zero) for _ in range(inputs)]
            for _ in range(rows)
        ]
        for held in self._held:
            for each in held:
                code.builder.store(zero, each)

    def get(self, row: int, column: int) -> Any:
        return self._code.builder.load(self._held[row][column])

    def put(self, row: int, column: int, value: Any) -> None:
        self._code.builder.store(value, self._held[row][column])

    def write(self, out: Any, pitch: Any) -> None:
        """Store float32 totals, those of the next input ``pitch`` further on."""
        for row, held in enumerate(self._held):
            for column in range(len(held)):
                total = self._code.total(self.get(row, column))
                place = self._code.at(self._code.times(pitch, column), long(row))
                self._code.store(total, self._code.at(out, self._code.times(place, 4)))


def int8_tile(rows: int, inputs: int) -> Any:
    """Return ``tile(w, w_stride, x, x_stride, columns, out, pitch)``: int8 times int16.

    Sums are exact in a lane.
    Strides are bytes. ``columns`` is a multiple of :data:`INT8_BLOCK` and at most 4,096, beyond
    which 32 bits could overflow.
    """
    chains = 1 if inputs > 1 else _LINE // LANES
    """Sums of a row and an input that do not wait for each other."""

    @intrinsic
    def tile(
        typing_context: Any,
        w: Any,
        w_stride: Any,
        x: Any,
        x_stride: Any,
        columns: Any,
        out: Any,
        pitch: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            w, w_stride, x, x_stride, columns, out, pitch = arguments
            code = Code(builder)
            zero = ir.Constant(_PAIRS, None)
            parts = [_Sums(code, rows, inputs, zero) for _ in range(chains)]

            def add(column: Any, sums: _Sums) -> None:
                weights = [
                    builder.sext(
                        code.load(code.at(w, code.times(w_stride, row), column), _BYTES), _SHORTS
                    )
                    for row in range(rows)
                ]
                for each in range(inputs):
                    place = code.at(x, code.times(x_stride, each), code.times(column, 2))
                    values = code.load(place, _SHORTS)
                    for row in range(rows):
                        pairs = code.pair_sums(values, weights[row])
                        sums.put(row, each, builder.add(sums.get(row, each), pairs))

            def line(column: Any) -> None:
                for row in range(rows):
                    code.prefetch(code.at(w, code.times(w_stride, row), column, long(_AHEAD_INT8)))
                for index, sums in enumerate(parts):
                    add(builder.add(column, long(LANES * index)), sums)

            whole = long(0)
            if inputs == 1:
                whole = builder.and_(columns, long(-_LINE))
                _steps(builder, long(0), whole, _LINE, line)
            _steps(builder, whole, columns, LANES, lambda column: add(column, parts[0]))
            for row in range(rows):
                for each in range(inputs):
                    found = [sums.get(row, each) for sums in parts]
                    parts[0].put(row, each, code.sum(found))
            parts[0].write(out, pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


def _steps(builder: Any, start: Any, stop: Any, step: int, body: Callable[[Any], None]) -> None:
    """Write a loop."""
    with cgutils.for_range_slice(builder, start, stop, long(step), I64) as (index, _):
        body(index)


def int4_tile(rows: int, inputs: int, group_size: int) -> Any:
    """Return a tile of int4 groups times int16.

    ``tile(w, w_stride, scales, zeros, groups, x, x_stride, totals, totals_stride, columns, out,
    pitch)``: strides are bytes, ``groups`` the padded scales of a row, ``totals`` the float32 sums
    of each group of inputs, and ``columns`` a multiple of :data:`INT4_BLOCK` and of the group.
    """
    unit = max(group_size, INT4_BLOCK)

    @intrinsic
    def tile(
        typing_context: Any,
        w: Any,
        w_stride: Any,
        scales: Any,
        zeros: Any,
        groups: Any,
        x: Any,
        x_stride: Any,
        totals: Any,
        totals_stride: Any,
        columns: Any,
        out: Any,
        pitch: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            code = Code(builder)
            (w, w_stride, scales, zeros, groups, x, x_stride, totals, totals_stride, columns, out,
             pitch) = arguments  # fmt: skip
            offsets = _Sums(code, rows, inputs, ZERO_FLOATS)
            halves = ir.VectorType(I16, INT4_GROUPS)

            def take_off(group: Any) -> None:
                """Take off what the zero points of some groups add to every code."""
                for row in range(rows):
                    place = code.at(code.times(groups, row), group)
                    if inputs == 1:
                        code.prefetch(code.at(scales, code.times(place, 2), long(_AHEAD_INT4)))
                        code.prefetch(code.at(zeros, place, long(_AHEAD_INT4 // 2)))
                    factor = code.widen(code.load(code.at(scales, code.times(place, 2)), halves))
                    zero = code.load(code.at(zeros, place), ir.VectorType(I8, INT4_GROUPS))
                    offset = builder.fmul(factor, builder.uitofp(zero, FLOATS))
                    for each in range(inputs):
                        total = code.load(
                            code.at(totals, code.times(totals_stride, each), code.times(group, 4)),
                            FLOATS,
                        )
                        less = builder.fneg(total)
                        offsets.put(row, each, code.fma(offset, less, offsets.get(row, each)))

            _steps(builder, long(0), groups, INT4_GROUPS, take_off)
            parts = [
                _Sums(code, rows, inputs, ir.Constant(_PAIR_FLOATS, None))
                for _ in range(unit // group_size if inputs == 1 else 1)
            ]
            for row in range(rows):
                for each in range(inputs):
                    less = code.followed_by_zeros(offsets.get(row, each), LANES // 2)
                    parts[0].put(row, each, less)

            def add(column: Any) -> None:
                """Add the products of some groups."""
                if inputs == 1:
                    for row in range(rows):
                        place = code.at(w, code.times(w_stride, row), builder.lshr(column, long(1)))
                        code.prefetch(code.at(place, long(_AHEAD_INT4)))
                group = builder.udiv(column, long(group_size))
                factors = [
                    _scales(code, code.at(scales, code.times(
                        code.at(code.times(groups, row), group), 2)), unit // group_size)
                    for row in range(rows)
                ]  # fmt: skip
                for index, first in enumerate(range(0, unit, group_size)):
                    sums = parts[index % len(parts)]
                    weights = [
                        _nibbles(code, code.at(w, code.times(w_stride, row)), column, first,
                                 group_size)
                        for row in range(rows)
                    ]  # fmt: skip
                    for each in range(inputs):
                        place = code.at(
                            x,
                            code.times(x_stride, each),
                            code.times(builder.add(column, long(first)), 2),
                        )
                        values = [
                            code.load(code.at(place, long(2 * start)), _SHORTS)
                            for start in range(0, group_size, LANES)
                        ]
                        for row in range(rows):
                            pairs = [
                                code.pair_sums(value, weight)
                                for value, weight in zip(values, weights[row], strict=True)
                            ]
                            exact = builder.sitofp(code.sum(pairs), _PAIR_FLOATS)
                            more = code.fma(exact, factors[row][index], sums.get(row, each))
                            sums.put(row, each, more)

            _steps(builder, long(0), columns, unit, add)
            for row in range(rows):
                for each in range(inputs):
                    parts[0].put(row, each, code.sum([sums.get(row, each) for sums in parts]))
            parts[0].write(out, pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), generate

    return tile


def _scales(code: Code, address: Any, count: int) -> list[Any]:
    """Return one or two bf16, each in every lane of a vector of float32."""
    kind = I32 if count == 2 else I16
    lanes = wide(kind, LANES * I16.width // kind.width)
    everywhere = code.splat(code.load(address, kind), lanes)
    pairs = code.builder.bitcast(everywhere, _PAIRS)
    low = code.builder.shl(pairs, ir.Constant(_PAIRS, [16] * _PAIRS.count))
    high = code.builder.and_(pairs, ir.Constant(_PAIRS, [0xFFFF0000] * _PAIRS.count))
    found = [low, high] if count == 2 else [high]
    return [code.builder.bitcast(each, _PAIR_FLOATS) for each in found]


def _nibbles(code: Code, row: Any, column: Any, first: int, count: int) -> list[Any]:
    """Return codes ``first…first + count`` of a block as vectors of int16.

    A block is 16 words, each of four codes; where a vector is of 32, two codes of each word.
    """
    builder, words = code.builder, INT4_BLOCK // 4
    found = []
    for start in range(first, first + count, LANES):
        block, place = divmod(start, INT4_BLOCK)
        half = builder.lshr(column, long(1))
        held = code.load(code.at(row, half, long(block * INT4_BLOCK // 2)), wide(I16, words))
        shifts = [4 * ((place + lane) // words) for lane in range(LANES)]
        codes = code.repeat(held, LANES // words)
        if any(shifts):
            codes = builder.lshr(codes, ir.Constant(_SHORTS, shifts))
        if set(shifts) != {12}:
            codes = builder.and_(codes, ir.Constant(_SHORTS, [0xF] * LANES))
        found.append(codes)
    return found


def bf16_tile(rows: int, inputs: int) -> Any:
    """Return ``tile(w, w_stride, x, x_stride, columns, out, pitch)``: bf16 times float32.

    Strides are bytes; ``columns`` is a multiple of eight.
    """

    @intrinsic
    def tile(
        typing_context: Any,
        w: Any,
        w_stride: Any,
        x: Any,
        x_stride: Any,
        columns: Any,
        out: Any,
        pitch: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            w, w_stride, x, x_stride, columns, out, pitch = arguments
            code = Code(builder)
            sums = _Sums(code, rows, inputs, ZERO_FLOATS)
            halves = ir.VectorType(I16, FLOATS.count)
            steps = cgutils.for_range_slice(builder, long(0), columns, long(FLOATS.count), I64)
            with steps as (column, _):
                weights = [
                    code.widen(
                        code.load(
                            code.at(w, code.times(w_stride, row), code.times(column, 2)), halves
                        )
                    )
                    for row in range(rows)
                ]
                for each in range(inputs):
                    place = code.at(x, code.times(x_stride, each), code.times(column, 4))
                    values = code.load(place, FLOATS)
                    for row in range(rows):
                        more = code.fma(values, weights[row], sums.get(row, each))
                        sums.put(row, each, more)
            sums.write(out, pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile
