"""The innermost loops of attention, in LLVM: scores of kept keys, sums of kept values.

What is kept is turned into float32 in registers, a vector at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import F32, I8, I16, I32, I64, LANES, Code, long, wide

PLAIN, INT8, INT4, DECODED = range(4)
"""How keys or values are held; the last is float32, already decoded."""
POSITIONS = 64
"""Keys and values that are looked at in one go."""
LINE = 64
"""Bytes of a cache line."""
_WIDTH = LANES // 2
"""Channels of a vector."""
_LEAST = 8
"""The size of a head is a multiple, for int4 of twice as many."""
_MOST_QUERIES = 4
"""Queries of a tile; their sums and those of as many keys or channels fit the registers."""
_BITS = {PLAIN: 16, INT8: 8, INT4: 4}
"""Of a channel in a cache."""


def _together(queries: int) -> int:
    """Return how many keys, or vectors of channels, are taken together with so many queries."""
    return 2 if queries == _MOST_QUERIES and _WIDTH == _LEAST else 4


class _Kept:
    """Reads one token's head, as its codec keeps it."""

    def __init__(self, code: Code, kind: int, size: Any, group: Any) -> None:
        self._code = code
        self._kind = kind
        self._size = size
        self._group = group

    def ask(self, ahead: Any, channel: Any, channels: Any) -> None:
        """Ask for some channels, ``channel`` the first, of a head that is read soon."""
        if self._kind == DECODED:
            return
        code, builder = self._code, self._code.builder
        first, last = (
            builder.lshr(code.times(each, _BITS[self._kind]), long(3))
            for each in (channel, builder.add(channel, channels))
        )
        code.steps(first, last, LINE, lambda line: code.prefetch(code.at(ahead, line)))

    def factor(self, scales: Any) -> Any:
        """Return what the whole head is to be multiplied by, or None."""
        return _bf16(self._code, scales) if self._kind == INT8 else None

    def vector(self, place: Any, scales: Any, channel: Any, width: int) -> Any:
        """Return ``width`` channels, without :meth:`factor`."""
        code, builder = self._code, self._code.builder
        if self._kind == DECODED:
            return code.load(code.at(place, code.times(channel, 4)), wide(F32, width))
        if self._kind == PLAIN:
            return code.widen(code.load(code.at(place, code.times(channel, 2)), wide(I16, width)))
        if self._kind == INT8:
            bytes_ = code.load(code.at(place, channel), wide(I8, width))
            return builder.sitofp(builder.sext(bytes_, wide(I32, width)), wide(F32, width))
        if width == _LEAST:
            return self._nibbles(place, scales, channel)
        parts = [
            self._nibbles(place, scales, builder.add(channel, long(first)))
            for first in range(0, width, _LEAST)
        ]
        return code.beside(*parts)

    def _nibbles(self, place: Any, scales: Any, channel: Any) -> Any:
        """Return eight int4: the first half of a head is in the low halves of its bytes."""
        code, builder = self._code, self._code.builder
        half = builder.lshr(self._size, long(1))
        upper = builder.icmp_unsigned(">=", channel, half)
        first = builder.select(upper, builder.sub(channel, half), channel)
        shift = builder.select(upper, ir.Constant(I8, 4), ir.Constant(I8, 0))
        octet = ir.VectorType(I8, _LEAST)
        bytes_ = builder.lshr(code.load(code.at(place, first), octet), code.splat(shift, octet))
        low = builder.and_(bytes_, ir.Constant(octet, [0xF] * _LEAST))
        codes = builder.uitofp(builder.zext(low, wide(I32, _LEAST)), wide(F32, _LEAST))
        pair = code.at(scales, code.times(builder.udiv(channel, self._group), 4))
        scale = code.splat(_bf16(code, pair), wide(F32, _LEAST))
        minimum = code.splat(_bf16(code, code.at(pair, long(2))), wide(F32, _LEAST))
        return code.fma(codes, scale, minimum)


def _bf16(code: Code, address: Any) -> Any:
    bits = code.builder.zext(code.load(address, I16), I32)
    return code.builder.bitcast(code.builder.shl(bits, ir.Constant(I32, 16)), F32)


@contextmanager
def _loop(builder: Any, stop: Any, step: int = 1) -> Iterator[Any]:
    with cgutils.for_range_slice(builder, long(0), stop, long(step), I64) as (index, _):
        yield index


def _accumulators(builder: Any, count: int, width: int) -> list[Any]:
    zero = ir.Constant(wide(F32, width), None)
    return [cgutils.alloca_once_value(builder, zero) for _ in range(count)]


def score_tile(kind: int, queries: int) -> Any:
    """Return a tile of scores.

    ``tile(query, size, keys, stride, scales, scale_stride, group, count, ahead, out, pitch)`` is
    called for ``queries`` float32 heads, one after another, and writes their products with
    ``count`` keys: ``out[query * pitch + key]``. Strides are bytes, ``group`` is an int4 group's
    channels. Keys at ``ahead``, as far apart, are asked for meanwhile.
    """

    @intrinsic
    def tile(
        typing_context: Any, query: Any, size: Any, keys: Any, stride: Any, scales: Any,
        scale_stride: Any, group: Any, count: Any, ahead: Any, out: Any, pitch: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            (query, size, keys, stride, scales, scale_stride, group, count, ahead, out,
             pitch) = arguments  # fmt: skip
            code = Code(builder)
            kept = _Kept(code, kind, size, group)
            sums = [_accumulators(builder, _together(queries), _WIDTH) for _ in range(queries)]

            def score(token: Any, num: int) -> None:
                """Write the scores of some keys from ``token`` on."""
                tokens = [builder.add(token, long(index)) for index in range(num)]
                places = [code.at(keys, builder.mul(stride, each)) for each in tokens]
                factors = [code.at(scales, builder.mul(scale_stride, each)) for each in tokens]
                for each in tokens:
                    kept.ask(code.at(ahead, builder.mul(stride, each)), long(0), size)
                for row in sums:
                    for held in row[:num]:
                        builder.store(ir.Constant(wide(F32, _WIDTH), None), held)

                def add(channel: Any, width: int) -> None:
                    found = [
                        kept.vector(place, scale, channel, width)
                        for place, scale in zip(places, factors, strict=True)
                    ]
                    for index, row in enumerate(sums):
                        at = builder.add(builder.mul(size, long(index)), channel)
                        value = code.load(code.at(query, code.times(at, 4)), wide(F32, width))
                        for key, held in zip(found, row, strict=False):
                            sum_ = builder.load(held)
                            if width == _WIDTH:
                                sum_ = code.fma(value, key, sum_)
                            else:
                                product = builder.fmul(value, key)
                                zero = ir.Constant(product.type, None)
                                sum_ = builder.fadd(sum_, code.beside(product, zero))
                            builder.store(sum_, held)

                whole = builder.and_(size, long(-_WIDTH))
                code.steps(long(0), whole, _WIDTH, lambda channel: add(channel, _WIDTH))
                code.steps(whole, size, _LEAST, lambda channel: add(channel, _LEAST))
                scale = [kept.factor(each) for each in factors]
                held = [[builder.load(each) for each in row[:num]] for row in sums]
                if queries == _MOST_QUERIES:
                    across = [code.totals([row[at] for row in held]) for at in range(num)]
                    results = [[column[index] for column in across] for index in range(queries)]
                else:
                    results = [code.totals(row) for row in held]
                for index, row in enumerate(results):
                    at = builder.add(builder.mul(pitch, long(index)), token)
                    place = code.at(out, code.times(at, 4))
                    for offset, total in enumerate(row):
                        factor = scale[offset]
                        result = total if factor is None else builder.fmul(total, factor)
                        code.store(result, code.at(place, long(4 * offset)))

            step = _together(queries)
            blocks = builder.udiv(count, long(step))
            with _loop(builder, blocks) as block:
                score(code.times(block, step), step)
            first = code.times(blocks, step)
            with _loop(builder, builder.sub(count, first)) as rest:
                score(builder.add(first, rest), 1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


def value_tile(kind: int, queries: int) -> Any:
    """Return the twin of :func:`score_tile` that adds weighted values.

    ``tile(weights, pitch, size, values, stride, scales, scale_stride, group, count, ahead, out,
    out_stride)`` adds to float32 heads at ``out``, ``out_stride`` bytes apart.
    """

    @intrinsic
    def tile(
        typing_context: Any, weights: Any, pitch: Any, size: Any, values: Any, stride: Any,
        scales: Any, scale_stride: Any, group: Any, count: Any, ahead: Any, out: Any,
        out_stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            (weights, pitch, size, values, stride, scales, scale_stride, group, count, ahead, out,
             out_stride) = arguments  # fmt: skip
            code = Code(builder)
            kept = _Kept(code, kind, size, group)

            def add(channel: Any, sums: list[list[Any]], width: int) -> None:
                """Add the tokens' values of some vectors of channels, from ``channel`` on."""
                floats = wide(F32, width)
                places = [
                    [
                        code.at(out, builder.mul(out_stride, long(index)),
                                code.times(builder.add(channel, long(width * vector)), 4))
                        for vector in range(len(row))
                    ]
                    for index, row in enumerate(sums)
                ]  # fmt: skip
                _each(sums, places, lambda held, at: builder.store(code.load(at, floats), held))
                with _loop(builder, count) as token:
                    place = code.at(values, builder.mul(stride, token))
                    scale = code.at(scales, builder.mul(scale_stride, token))
                    factor = kept.factor(scale)
                    channels = long(width * len(sums[0]))
                    kept.ask(code.at(ahead, builder.mul(stride, token)), channel, channels)
                    found = [
                        kept.vector(place, scale, builder.add(channel, long(width * at)), width)
                        for at in range(len(sums[0]))
                    ]
                    for index, row in enumerate(sums):
                        at = builder.add(builder.mul(pitch, long(index)), token)
                        weight = code.load(code.at(weights, code.times(at, 4)), F32)
                        if factor is not None:
                            weight = builder.fmul(weight, factor)
                        many = code.splat(weight, floats)
                        for vector, held in zip(found, row, strict=True):
                            builder.store(code.fma(many, vector, builder.load(held)), held)
                _each(sums, places, lambda held, at: code.store(builder.load(held), at, align=4))

            many = [_accumulators(builder, _together(queries), _WIDTH) for _ in range(queries)]
            one = [row[:1] for row in many]
            least = [_accumulators(builder, 1, _LEAST) for _ in range(queries)]
            step = _WIDTH * _together(queries)
            blocks = code.times(builder.udiv(size, long(step)), step)
            whole = builder.and_(size, long(-_WIDTH))
            code.steps(long(0), blocks, step, lambda channel: add(channel, many, _WIDTH))
            code.steps(blocks, whole, _WIDTH, lambda channel: add(channel, one, _WIDTH))
            code.steps(whole, size, _LEAST, lambda channel: add(channel, least, _LEAST))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), generate

    return tile


def transposed(rows: int) -> Any:
    """Return ``transpose(source, size, out)``: float32 ``[rows, size]`` as ``[size, rows]``."""

    @intrinsic
    def transpose(typing_context: Any, source: Any, size: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            source, size, out = arguments
            code = Code(builder)

            def block(column: Any) -> None:
                for first in range(0, rows, _LEAST):
                    vectors = []
                    for row in range(first, first + _LEAST):
                        at = builder.add(code.times(size, row), column)
                        place = code.at(source, code.times(at, 4))
                        vectors.append(code.load(place, wide(F32, _LEAST)))
                    for index, vector in enumerate(code.transpose(vectors)):
                        at = builder.add(code.times(column, rows), long(index * rows + first))
                        code.store(vector, code.at(out, code.times(at, 4)))

            code.steps(long(0), size, _LEAST, block)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return transpose


def largest_of(count: int) -> Any:
    """Return ``largest(place)`` of so many float32, a power of two of vectors."""

    @intrinsic
    def largest(typing_context: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            code = Code(builder)
            step = 4 * _WIDTH
            vectors = [
                code.load(code.at(arguments[0], long(at)), wide(F32, _WIDTH))
                for at in range(0, 4 * count, step)
            ]
            while len(vectors) > 1:
                half = len(vectors) // 2
                pairs = zip(vectors[:half], vectors[half:], strict=True)
                vectors = [code.larger(left, right) for left, right in pairs]
            found = vectors[0]
            while found.type.count > 1:
                found = code.larger(*code.halves(found))
            return builder.extract_element(found, ir.Constant(I32, 0))

        return types.float32(types.int64), generate

    return largest


def exponentials(count: int) -> Any:
    """Return ``exponentials(place, largest)``: so many ``x`` become ``exp(x - largest)``.

    Its result is their sum.
    """

    @intrinsic
    def take(typing_context: Any, place: Any, largest: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            place, largest = arguments
            code, kind = Code(builder), wide(F32, _WIDTH)
            less, sums = code.splat(largest, kind), []
            for at in range(0, 4 * count, 4 * _WIDTH):
                vector = code.load(code.at(place, long(at)), kind)
                found = code.exponential(builder.fsub(vector, less))
                code.store(found, code.at(place, long(at)))
                sums.append(found)
            return code.total(code.sum(sums))

        return types.float32(types.int64, types.float32), generate

    return take


def _each(rows: list[list[Any]], others: list[list[Any]], do: Callable[[Any, Any], Any]) -> None:
    for row, other in zip(rows, others, strict=True):
        for left, right in zip(row, other, strict=True):
            do(left, right)
