"""The innermost loops of products: a few rows of a weight times a few rows of inputs, in LLVM.

Each tile keeps all its sums in registers. Products of int16 are summed in pairs by one instruction
(pmaddwd on x86), for which LLVM takes the generic form that is written here.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import (
    BYTES,
    FLOATS,
    I8,
    I16,
    I64,
    INTS,
    LANES,
    SHORTS,
    ZERO_FLOATS,
    ZERO_INTS,
    Code,
    long,
)
from compression.schemes import INT4_BLOCK, INT4_GROUPS

_AHEAD_INT8 = 2048
_AHEAD_INT4 = 1024
"""Bytes that are asked for before they are read, where one input reads the weight once."""


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
    Strides are bytes. ``columns`` is a multiple of :data:`LANES` and at most 4,096, beyond which
    32 bits could overflow.
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
            sums = _Sums(code, rows, inputs, ZERO_INTS)
            steps = cgutils.for_range_slice(builder, long(0), columns, long(LANES), I64)
            with steps as (column, _):
                if inputs == 1:
                    for row in range(rows):
                        code.prefetch(
                            code.at(w, code.times(w_stride, row), column, long(_AHEAD_INT8))
                        )
                weights = [
                    builder.sext(
                        code.load(code.at(w, code.times(w_stride, row), column), BYTES), SHORTS
                    )
                    for row in range(rows)
                ]
                for each in range(inputs):
                    place = code.at(x, code.times(x_stride, each), code.times(column, 2))
                    values = code.load(place, SHORTS)
                    for row in range(rows):
                        pairs = code.pair_sums(values, weights[row])
                        sums.put(row, each, builder.add(sums.get(row, each), pairs))
            sums.write(out, pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


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
            sums = _Sums(code, rows, inputs, ZERO_FLOATS)
            halves = ir.VectorType(I16, INT4_GROUPS)
            starts = cgutils.for_range_slice(builder, long(0), groups, long(INT4_GROUPS), I64)
            with starts as (group, _):
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
                        sums.put(row, each, code.fma(offset, less, sums.get(row, each)))
            steps = cgutils.for_range_slice(builder, long(0), columns, long(unit), I64)
            with steps as (column, _):
                if inputs == 1:
                    for row in range(rows):
                        place = code.at(w, code.times(w_stride, row), builder.lshr(column, long(1)))
                        code.prefetch(code.at(place, long(_AHEAD_INT4)))
                group = builder.udiv(column, long(group_size))
                for first in range(0, unit, group_size):
                    number = builder.add(group, long(first // group_size))
                    factors = [
                        _scale(code, code.at(scales, code.times(
                            code.at(code.times(groups, row), number), 2)))
                        for row in range(rows)
                    ]  # fmt: skip
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
                            code.load(code.at(place, long(2 * start)), SHORTS)
                            for start in range(0, group_size, LANES)
                        ]
                        for row in range(rows):
                            pairs = [
                                code.pair_sums(value, weight)
                                for value, weight in zip(values, weights[row], strict=True)
                            ]
                            total = pairs[0]
                            for pair in pairs[1:]:
                                total = builder.add(total, pair)
                            exact = builder.sitofp(total, FLOATS)
                            more = code.fma(exact, factors[row], sums.get(row, each))
                            sums.put(row, each, more)
            sums.write(out, pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), generate

    return tile


def _scale(code: Code, address: Any) -> Any:
    """Return one bf16 in all eight lanes: all sixteen halves are it, the lower ones are masked."""
    everywhere = code.splat(code.load(address, I16), SHORTS)
    upper = ir.Constant(INTS, [0xFFFF0000] * (LANES // 2))
    return code.builder.bitcast(code.builder.and_(code.builder.bitcast(everywhere, INTS), upper),
                                FLOATS)  # fmt: skip


def _nibbles(code: Code, row: Any, column: Any, first: int, count: int) -> list[Any]:
    """Return codes ``first…first + count`` of a block as vectors of int16."""
    found = []
    for start in range(first, first + count, LANES):
        block, place = divmod(start, INT4_BLOCK)
        half = code.builder.lshr(column, long(1))
        words = code.load(code.at(row, half, long(block * INT4_BLOCK // 2)), SHORTS)
        shift = 4 * (place // LANES)
        if shift:
            words = code.builder.lshr(words, ir.Constant(SHORTS, [shift] * LANES))
        if shift != 12:
            words = code.builder.and_(words, ir.Constant(SHORTS, [0xF] * LANES))
        found.append(words)
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
            halves = ir.VectorType(I16, LANES // 2)
            steps = cgutils.for_range_slice(builder, long(0), columns, long(LANES // 2), I64)
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
