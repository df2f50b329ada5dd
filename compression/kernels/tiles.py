"""The innermost loops of products: a few rows of a weight times a few rows of inputs, in LLVM.

Each tile keeps all its sums in registers. Products of int16 are summed in pairs by one instruction
(pmaddwd, or with what was summed before vpdpwssd), for which LLVM takes the generic form that is
written here.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import FLOATS, I8, I16, I32, I64, LANES, ZERO_FLOATS, Code, long, wide

_AHEAD = 2048
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
                    code.prefetch(code.at(w, code.times(w_stride, row), column, long(_AHEAD)))
                for index, sums in enumerate(parts):
                    add(builder.add(column, long(LANES * index)), sums)

            whole = long(0)
            if inputs == 1:
                whole = builder.and_(columns, long(-_LINE))
                code.steps(long(0), whole, _LINE, line)
            code.steps(whole, columns, LANES, lambda column: add(column, parts[0]))
            for row in range(rows):
                for each in range(inputs):
                    found = [sums.get(row, each) for sums in parts]
                    parts[0].put(row, each, code.sum(found))
            parts[0].write(out, pitch)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


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
