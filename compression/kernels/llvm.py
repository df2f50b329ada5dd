"""LLVM's instructions as the innermost loops write them: vectors of numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
INTS = ir.VectorType(I32, 8)
FLOATS = ir.VectorType(F32, 8)
ZERO_FLOATS = ir.Constant(FLOATS, [0.0] * 8)


def processor() -> tuple[str, str]:
    """Return the name and the features of the processor that numba makes code for."""
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    return (
        llvmlite.binding.get_host_cpu_name() if name is None else name,
        get_host_cpu_features() if features is None else features,
    )


LANES = 32 if "+avx512bw" in processor()[1].split(",") else 16
"""Numbers of int16 that one instruction takes."""


_LOWEST, _HIGHEST = -87.30000305175781, 88.0
_LOG2_E, _LN_2_HIGH, _LN_2_LOW = 1.4426950216293335, 0.693359375, -2.1219444170128554e-4
_POLYNOMIAL = (
    1.9875691214110702e-4,
    1.3981999363750219e-3,
    8.333452045917511e-3,
    4.166579619050026e-2,
    0.1666666567325592,
    0.5,
)
"""Numbers of :mod:`compression.kernels.exponential`, each the nearest float32."""
_LEAST_POWER = -96.0
_POWER_POLYNOMIAL = (
    0.0013276460813358426,
    0.009675540961325169,
    0.05550713464617729,
    0.24022120237350464,
    0.6931469440460205,
    1.0000001192092896,
)
"""Of 2ˣ for x up to a half, fitted to the least relative error."""


def long(value: int) -> Any:
    return ir.Constant(I64, value)


def wide(kind: Any, count: int) -> Any:
    """Return the type of a vector of ``count`` numbers."""
    return ir.VectorType(kind, count)


class Code:
    """Writes LLVM's instructions that the tiles share."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def steps(self, start: Any, stop: Any, step: int, body: Callable[[Any], None]) -> None:
        """Write a loop."""
        with cgutils.for_range_slice(self.builder, start, stop, long(step), I64) as (index, _):
            body(index)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call a function of LLVM's own."""
        kind = ir.FunctionType(result, [each.type for each in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

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

    def held(self, value: Any) -> Any:
        """Return a place that holds a value; LLVM keeps it in a register."""
        return cgutils.alloca_once_value(self.builder, value)

    def bias(self, address: Any, count: int) -> Any:
        """Return float32 of a bias in bf16; zeros where its address is 0."""
        held = cgutils.alloca_once_value(self.builder, ir.Constant(wide(F32, count), None))
        has = self.builder.icmp_unsigned("!=", address, long(0))
        with self.builder.if_then(has):
            self.builder.store(self.widen(self.load(address, wide(I16, count))), held)
        return self.builder.load(held)

    def write(self, value: Any, adds: Any, address: Any) -> None:
        """Store a vector of float32, or add it to what is there where ``adds`` is not 0."""
        there = self.load(address, value.type)
        counts = self.builder.icmp_unsigned("!=", adds, long(0))
        before = self.builder.select(counts, there, ir.Constant(value.type, None))
        self.store(self.builder.fadd(self.rounded(value), before), address)

    def prefetch(self, address: Any, level: int = 1) -> None:
        """Ask for the cache line at an address, which may be beyond all memory.

        To the second cache only it comes faster from far away: the first waits for few lines.
        """
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        place = self.builder.inttoptr(address, I8.as_pointer())
        read, keep, data = (ir.Constant(I32, value) for value in (0, 4 - level, 1))
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
        """Return the sums of neighbouring products of int16, half as many int32."""
        count = left.type.count
        kind = ir.VectorType(I32, count)
        product = self.builder.mul(self.builder.sext(left, kind), self.builder.sext(right, kind))
        return self.adjacent_sums(product)

    def adjacent_sums(self, vector: Any) -> Any:
        """Return the sums of neighbouring int32, half as many."""
        count = vector.type.count
        even, odd = (
            self.builder.shuffle_vector(
                vector,
                ir.Constant(vector.type, ir.Undefined),
                ir.Constant(ir.VectorType(I32, count // 2), list(range(start, count, 2))),
            )
            for start in (0, 1)
        )
        return self.builder.add(even, odd)

    def beside(self, left: Any, right: Any) -> Any:
        """Return two vectors as one."""
        order = list(range(2 * left.type.count))
        kind = ir.VectorType(I32, len(order))
        return self.builder.shuffle_vector(left, right, ir.Constant(kind, order))

    def halves(self, vector: Any) -> tuple[Any, Any]:
        """Return the first and the second half of a vector."""
        count = vector.type.count // 2
        empty = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            self.builder.shuffle_vector(
                vector,
                empty,
                ir.Constant(ir.VectorType(I32, count), list(range(start, start + count))),
            )
            for start in (0, count)
        )
        return low, high

    def larger(self, left: Any, right: Any) -> Any:
        """Return the larger numbers of two vectors of float32."""
        return self.builder.select(self.builder.fcmp_ordered(">", left, right), left, right)

    def repeat(self, vector: Any, times: int) -> Any:
        """Return a vector as often as said, one after another."""
        order = list(range(vector.type.count)) * times
        return self.builder.shuffle_vector(
            vector,
            ir.Constant(vector.type, ir.Undefined),
            ir.Constant(ir.VectorType(I32, len(order)), order),
        )

    def transpose(self, rows: list[Any]) -> list[Any]:
        """Return as many vectors as each has numbers, rows and columns exchanged."""
        size = len(rows)
        step = 1
        while step < size:
            rows = [self._exchange(rows, index, step) for index in range(size)]
            step *= 2
        return rows

    def _exchange(self, rows: list[Any], index: int, step: int) -> Any:
        """Return a row whose blocks of ``step`` off the diagonal are those of its partner."""
        upper = bool(index & step)
        first, second = rows[index & ~step], rows[index | step]
        size = len(rows)
        order = []
        for lane in range(size):
            if upper:
                order.append(size + lane if lane & step else lane + step)
            else:
                order.append(size + lane - step if lane & step else lane)
        kind = ir.VectorType(ir.IntType(32), size)
        return self.builder.shuffle_vector(first, second, ir.Constant(kind, order))

    def sum(self, vectors: Sequence[Any]) -> Any:
        """Return the sum of vectors, lane by lane."""
        add = self.builder.fadd if vectors[0].type.element == F32 else self.builder.add
        found = vectors[0]
        for vector in vectors[1:]:
            found = add(found, vector)
        return found

    def widen(self, halves: Any) -> Any:
        """Return bf16 as float32."""
        kind = wide(I32, halves.type.count)
        shifted = self.builder.shl(
            self.builder.zext(halves, kind), ir.Constant(kind, [16] * kind.count)
        )
        return self.builder.bitcast(shifted, wide(F32, kind.count))

    def fma(self, left: Any, right: Any, more: Any) -> Any:
        """Return ``left * right + more`` of as many numbers, rounded once where that is fast."""
        return self.call(f"llvm.fmuladd.v{left.type.count}f32", left.type, left, right, more)

    def exponential(self, x: Any) -> Any:
        """Return eˣ of float32 up to 0; NaN of NaN.

        Of vectors of 512 bits it is within 2⁻¹⁹, and 0 below 2⁻⁹⁶; of others what
        :func:`compression.kernels.exponential.exponential` returns.
        """
        return self._power(x) if x.type.count == LANES // 2 == 16 else self._exponential(x)

    def _power(self, x: Any) -> Any:
        """Return eˣ by the instruction that multiplies by a power of two."""
        builder, kind = self.builder, x.type

        def number(value: float) -> Any:
            return ir.Constant(kind, [value] * kind.count)

        power = builder.fmul(x, number(_LOG2_E))
        counts = builder.fcmp_unordered(">=", power, number(_LEAST_POWER))
        whole = self.call(f"llvm.rint.v{kind.count}f32", kind, power)
        rest = self.fma(x, number(_LOG2_E), builder.fneg(whole))
        value = number(_POWER_POLYNOMIAL[0])
        for factor in _POWER_POLYNOMIAL[1:]:
            value = self.fma(value, rest, number(factor))
        lanes = builder.bitcast(counts, ir.IntType(kind.count))
        name, nearest = "llvm.x86.avx512.mask.scalef.ps.512", ir.Constant(I32, 4)
        return self.call(name, kind, value, whole, number(0.0), lanes, nearest)

    def _exponential(self, x: Any) -> Any:
        builder, kind = self.builder, x.type
        integers = wide(I32, kind.count)

        def number(value: float) -> Any:
            return ir.Constant(kind, [value] * kind.count)

        lowest, highest = number(_LOWEST), number(_HIGHEST)
        bounded = builder.select(builder.fcmp_ordered(">", x, lowest), x, lowest)
        bounded = builder.select(builder.fcmp_ordered("<", bounded, highest), bounded, highest)
        power = self.fma(bounded, number(_LOG2_E), number(0.5))
        power = self.call(f"llvm.floor.v{kind.count}f32", kind, power)
        rest = self.fma(power, number(-_LN_2_HIGH), bounded)
        rest = self.fma(power, number(-_LN_2_LOW), rest)
        value = number(_POLYNOMIAL[0])
        for factor in _POLYNOMIAL[1:]:
            value = self.fma(value, rest, number(factor))
        value = self.fma(builder.fmul(value, rest), rest, builder.fadd(rest, number(1.0)))
        bits = builder.add(
            builder.fptosi(power, integers), ir.Constant(integers, [127] * kind.count)
        )
        scale = builder.shl(bits, ir.Constant(integers, [23] * kind.count))
        found = builder.fmul(value, builder.bitcast(scale, kind))
        found = builder.select(builder.fcmp_ordered("<", x, lowest), number(0.0), found)
        size = self.call(f"llvm.fabs.v{kind.count}f32", kind, x)
        is_number = builder.fcmp_ordered("<", size, number(float("inf")))
        return builder.select(is_number, found, number(float("nan")))

    def rounded(self, value: Any) -> Any:
        """Return a result that is rounded before anything is added to it."""
        kind = value.type
        return self.call(f"llvm.arithmetic.fence.v{kind.count}f32", kind, value)

    def total(self, vector: Any) -> Any:
        """Return the sum of a vector, a float32; that of integers is rounded once."""
        count = vector.type.count
        if vector.type.element == I32:
            longs = self.builder.sext(vector, wide(I64, count))
            total = self.call(f"llvm.vector.reduce.add.v{count}i64", I64, longs)
            return self.builder.sitofp(total, F32)
        kind = ir.FunctionType(F32, [F32, vector.type])
        name = f"llvm.vector.reduce.fadd.v{count}f32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        start = ir.Constant(F32, 0.0)
        return self.builder.call(function, [start, vector], fastmath=("reassoc",))

    def totals(self, vectors: list[Any]) -> list[Any]:
        """Return the sums of one or of four vectors of float32."""
        if len(vectors) != 4:
            return [self.total(vector) for vector in vectors]
        while vectors[0].type.count > FLOATS.count:
            vectors = [self.builder.fadd(*self.halves(vector)) for vector in vectors]
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
