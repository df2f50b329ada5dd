"""LLVM's instructions as the innermost loops write them: vectors of eight numbers."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
"""Columns that one step of a product takes; int8 weights are padded to a multiple."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
BYTES = ir.VectorType(I8, LANES)
SHORTS = ir.VectorType(I16, LANES)
INTS = ir.VectorType(I32, LANES // 2)
FLOATS = ir.VectorType(F32, LANES // 2)
ZERO_INTS = ir.Constant(INTS, [0] * (LANES // 2))
ZERO_FLOATS = ir.Constant(FLOATS, [0.0] * (LANES // 2))


def long(value: int) -> Any:
    return ir.Constant(I64, value)


class Code:
    """Writes LLVM's instructions that the tiles share."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def at(self, base: Any, *offsets: Any) -> Any:
        """Return the sum of byte offsets."""
        for offset in offsets:
            base = self.builder.add(base, offset)
        return base

    def times(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, long(factor))

    def load(self, address: Any, kind: Any) -> Any:
        loaded = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 1
        return loaded

    def prefetch(self, address: Any) -> None:
        """Ask for the cache line at an address, which may be beyond all memory."""
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        place = self.builder.inttoptr(address, I8.as_pointer())
        read, keep, data = (ir.Constant(I32, value) for value in (0, 3, 1))
        self.builder.call(function, [place, read, keep, data])

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        place = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, place, align=align)

    def splat(self, scalar: Any, kind: Any) -> Any:
        empty = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(empty, scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.builder.shuffle_vector(first, empty, zeros)

    def pair_sums(self, left: Any, right: Any) -> Any:
        """Return the eight sums of neighbouring products of 16 int16."""
        wide = ir.VectorType(I32, LANES)
        product = self.builder.mul(self.builder.sext(left, wide), self.builder.sext(right, wide))
        empty = ir.Constant(wide, ir.Undefined)
        even, odd = (
            self.builder.shuffle_vector(
                product, empty, ir.Constant(INTS, list(range(start, LANES, 2)))
            )
            for start in (0, 1)
        )
        return self.builder.add(even, odd)

    def widen(self, halves: Any) -> Any:
        """Return eight bf16 as float32."""
        shifted = self.builder.shl(
            self.builder.zext(halves, INTS), ir.Constant(INTS, [16] * (LANES // 2))
        )
        return self.builder.bitcast(shifted, FLOATS)

    def fma(self, left: Any, right: Any, more: Any) -> Any:
        """Return ``left * right + more`` of eight numbers each, rounded once where that is fast."""
        kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.fmuladd.v8f32")
        return self.builder.call(function, [left, right, more])

    def total(self, vector: Any) -> Any:
        """Return the sum of eight numbers, a float32; the eight fit 32 bits, their sum may not."""
        floats = self.builder.sitofp(vector, FLOATS) if vector.type == INTS else vector
        kind, name = ir.FunctionType(F32, [F32, FLOATS]), "llvm.vector.reduce.fadd.v8f32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        start = ir.Constant(F32, 0.0)
        return self.builder.call(function, [start, floats], fastmath=("reassoc",))

    def totals(self, vectors: list[Any]) -> list[Any]:
        """Return the sums of eight numbers each of one or of four vectors."""
        if len(vectors) != 4:
            return [self.total(vector) for vector in vectors]
        pairs = [self._neighbours(*vectors[:2]), self._neighbours(*vectors[2:])]
        halves = self._neighbours(*pairs)
        empty = ir.Constant(FLOATS, ir.Undefined)
        low, high = (
            self.builder.shuffle_vector(
                halves, empty, ir.Constant(ir.VectorType(I32, 4), list(range(start, start + 4)))
            )
            for start in (0, 4)
        )
        four = self.builder.fadd(low, high)
        return [self.builder.extract_element(four, ir.Constant(I32, at)) for at in range(4)]

    def _neighbours(self, left: Any, right: Any) -> Any:
        """Return sums of neighbours, lane by lane of 128 bits as haddps has them."""
        even, odd = (
            self.builder.shuffle_vector(
                left,
                right,
                ir.Constant(INTS, [start + at for at in (0, 2, 8, 10, 4, 6, 12, 14)]),
            )
            for start in (0, 1)
        )
        return self.builder.fadd(even, odd)
