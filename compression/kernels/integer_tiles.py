"""The innermost loops of attention over int8 keys and values, in integers.

Products of two int16, or of four bytes, are added to a lane of int32 by one instruction; where it
has another order than memory, it is put right at the end.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from compression.kernels.attention_tiles import LINE, POSITIONS
from compression.kernels.llvm import F32, I8, I16, I32, LANES, Code, long, processor, wide

CHANNELS = 64
"""Of values that are summed together."""
HAS_QUADS = LANES == 32 and "+avx512vnni" in processor()[1].split(",")
"""Whether the processor adds products of four bytes to a lane, 16 lanes at once."""
_QUADS = "llvm.x86.avx512.vpdpbusd.512"
_WIDTH = LANES // 2
"""Lanes of int32 in a vector; so many keys are taken together."""
_WEIGHT_STEPS, _SIGNLESS = 65535.0, 0x7FFFFFFF
LEAST = np.float32(1e-30)
"""Below it no scale is made, whose inverse would be infinite."""
_QUAD = 4
"""Keys whose sums are folded together; values whose bytes lie in one lane."""


class _Lanes:
    """Shuffles within and between the 128-bit lanes of vectors of int32."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def shuffle(self, left: Any, right: Any, order: Sequence[int]) -> Any:
        kind = ir.VectorType(I32, len(order))
        return self._code.builder.shuffle_vector(left, right, ir.Constant(kind, list(order)))

    def _in_lanes(self, left: Any, right: Any, order: Sequence[int]) -> Any:
        """Shuffle four of a lane's ``left`` (0 to 3) and ``right`` (4 to 7), in every lane."""
        count = left.type.count
        return self.shuffle(
            left,
            right,
            [
                lane + at % _QUAD + (count if at >= _QUAD else 0)
                for lane in range(0, count, _QUAD)
                for at in order
            ],
        )

    def fold(self, four: Sequence[Any]) -> Any:
        """Return in every lane what the same lane of four vectors sums to."""
        add = self._code.builder.add
        first, second = (
            add(
                self._in_lanes(left, right, (0, 4, 1, 5)),
                self._in_lanes(left, right, (2, 6, 3, 7)),
            )
            for left, right in (four[:2], four[2:])
        )
        return add(
            self._in_lanes(first, second, (0, 1, 4, 5)),
            self._in_lanes(first, second, (2, 3, 6, 7)),
        )

    def gather(self, folded: Sequence[Any]) -> Any:
        """Return the sums of all lanes of as many vectors, one lane of each."""
        vectors, add = list(folded), self._code.builder.add
        while len(vectors) > 1:
            count = vectors[0].type.count
            half = [at for lane in range(0, 2 * count, 2 * _QUAD) for at in range(lane, lane + 4)]
            vectors = [
                add(
                    self.shuffle(left, right, half),
                    self.shuffle(left, right, [at + _QUAD for at in half]),
                )
                for left, right in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]


def score_tile(queries: int) -> Any:
    """Return ``tile(query, size, keys, stride, count, ahead, out)``.

    It writes the int32 products of ``queries`` int16 heads, one after another, with ``count`` keys
    and what follows to a multiple of vectors: ``out[query * POSITIONS + key]``. Keys at ``ahead``,
    as far apart, are asked for meanwhile.
    """

    @intrinsic
    def tile(
        typing_context: Any, query: Any, size: Any, keys: Any, stride: Any, count: Any, ahead: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            query, size, keys, stride, count, ahead, out = arguments
            code = Code(builder)
            lanes, last = _Lanes(code), builder.sub(count, long(1))
            zero = ir.Constant(wide(I32, _WIDTH), None)

            def four(token: Any) -> list[Any]:
                """Return the folded products of each query with four keys."""
                places, asked = [], []
                for offset in range(_QUAD):
                    at = builder.add(token, long(offset))
                    at = builder.select(builder.icmp_signed("<", at, last), at, last)
                    far = builder.mul(stride, at)
                    places.append(code.at(keys, far))
                    asked.append(code.at(ahead, far))

                def ask(line: Any) -> None:
                    for each in asked:
                        code.prefetch(code.at(each, line))

                code.steps(long(0), size, LINE, ask)
                sums = [[code.held(zero) for _ in places] for _ in range(queries)]

                def add(channel: Any) -> None:
                    found = [
                        builder.sext(
                            code.load(code.at(place, channel), wide(I8, LANES)), wide(I16, LANES)
                        )
                        for place in places
                    ]
                    for index, row in enumerate(sums):
                        at = builder.add(builder.mul(size, long(index)), channel)
                        mine = code.load(code.at(query, code.times(at, 2)), wide(I16, LANES))
                        for key, held in zip(found, row, strict=True):
                            more = code.pair_sums(key, mine)
                            builder.store(builder.add(builder.load(held), more), held)

                code.steps(long(0), size, LANES, add)
                return [lanes.fold([builder.load(held) for held in row]) for row in sums]

            def many(token: Any) -> None:
                folded = [
                    four(builder.add(token, long(first))) for first in range(0, _WIDTH, _QUAD)
                ]
                for index in range(queries):
                    found = lanes.gather([each[index] for each in folded])
                    at = builder.add(token, long(index * POSITIONS))
                    code.store(found, code.at(out, code.times(at, 4)))

            code.steps(long(0), count, _WIDTH, many)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


def value_tile(queries: int) -> Any:
    """Return ``tile(weights, size, values, stride, count, ahead, out)``.

    It writes the int32 sums of ``count`` values: ``out[query * size + channel]``. Weights are two
    planes of :data:`POSITIONS` bytes of each query, high before low, and 0 beyond the values.
    Values at ``ahead``, as far apart, are asked for meanwhile.
    """

    @intrinsic
    def tile(
        typing_context: Any, weights: Any, size: Any, values: Any, stride: Any, count: Any,
        ahead: Any, out: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            weights, size, values, stride, count, ahead, out = arguments
            code = Code(builder)
            lanes, last = _Lanes(code), builder.sub(count, long(1))
            kind = wide(I32, _WIDTH)
            zero = ir.Constant(kind, None)

            def unpack(left: Any, right: Any, bytes_: int) -> tuple[Any, Any]:
                """Return the halves of all lanes, their parts of ``bytes_`` in turns."""
                per_lane, total = 16 // bytes_, 64 // bytes_
                part = wide(ir.IntType(8 * bytes_), total)
                left, right = builder.bitcast(left, part), builder.bitcast(right, part)
                order = [
                    [
                        at
                        for lane in range(0, total, per_lane)
                        for each in range(lane + start, lane + start + per_lane // 2)
                        for at in (each, each + total)
                    ]
                    for start in (0, per_lane // 2)
                ]
                low, high = (lanes.shuffle(left, right, each) for each in order)
                return low, high

            def block(channel: Any) -> None:
                planes = [
                    [[code.held(zero) for _ in range(4)] for _ in range(2)] for _ in range(queries)
                ]

                def add(token: Any) -> None:
                    rows = []
                    for offset in range(_QUAD):
                        at = builder.add(token, long(offset))
                        at = builder.select(builder.icmp_signed("<", at, last), at, last)
                        far = builder.mul(stride, at)
                        code.prefetch(code.at(ahead, far, channel))
                        place = code.at(values, far, channel)
                        rows.append(code.load(place, wide(I8, 64)))
                    pairs = [unpack(rows[0], rows[1], 1), unpack(rows[2], rows[3], 1)]
                    quads = [
                        builder.bitcast(each, kind)
                        for half in range(2)
                        for each in unpack(pairs[0][half], pairs[1][half], 2)
                    ]
                    for index, query in enumerate(planes):
                        for plane, sums in enumerate(query):
                            at = builder.add(token, long((2 * index + plane) * POSITIONS))
                            weight = code.splat(code.load(code.at(weights, at), I32), kind)
                            for held, quad in zip(sums, quads, strict=True):
                                more = code.call(_QUADS, kind, builder.load(held), weight, quad)
                                builder.store(more, held)

                code.steps(long(0), count, _QUAD, add)
                for index, query in enumerate(planes):
                    high, low = ([builder.load(held) for held in sums] for sums in query)
                    shift = ir.Constant(kind, [8] * _WIDTH)
                    whole = [
                        builder.add(builder.shl(left, shift), right)
                        for left, right in zip(high, low, strict=True)
                    ]
                    # A vector has four channels of each 16; a lane of each is 16 in a row.
                    for lane in range(4):
                        mine = range(4 * lane, 4 * lane + 4)
                        both = [*mine, *[at + _WIDTH for at in mine]]
                        left = lanes.shuffle(whole[0], whole[1], both)
                        right = lanes.shuffle(whole[2], whole[3], both)
                        at = builder.add(builder.mul(size, long(index)), channel)
                        at = builder.add(at, long(16 * lane))
                        code.store(code.beside(left, right), code.at(out, code.times(at, 4)))

            code.steps(long(0), size, CHANNELS, block)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


@intrinsic
def round_weights(typing_context: Any, weights: Any, factors: Any, out: Any) -> Any:
    """Write :data:`POSITIONS` weights, each times its value's scale, as two planes of bytes.

    Returns what a sum over them is to be multiplied by.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        weights, factors, out = arguments
        code, kind = Code(builder), wide(F32, _WIDTH)
        integers, places = wide(I32, _WIDTH), range(0, POSITIONS, _WIDTH)
        scaled = [
            builder.fmul(
                code.load(code.at(weights, long(4 * at)), kind),
                code.load(code.at(factors, long(4 * at)), kind),
            )
            for at in places
        ]
        bits = [
            builder.and_(
                builder.bitcast(each, integers), ir.Constant(integers, [_SIGNLESS] * _WIDTH)
            )
            for each in scaled
        ]
        name = f"llvm.smax.v{_WIDTH}i32"
        most = bits[0]
        for each in bits[1:]:
            most = code.call(name, integers, most, each)
        peak = code.call(f"llvm.vector.reduce.smax.v{_WIDTH}i32", I32, most)
        found = builder.bitcast(peak, F32)
        least = ir.Constant(F32, float(LEAST))
        found = builder.select(builder.fcmp_ordered("<", found, least), least, found)
        scale = builder.fdiv(found, ir.Constant(F32, _WEIGHT_STEPS))
        inverse = code.splat(builder.fdiv(ir.Constant(F32, 1.0), scale), kind)
        for at, each in zip(places, scaled, strict=True):
            steps = builder.fmul(each, inverse)
            steps = code.call(f"llvm.rint.v{_WIDTH}f32", kind, steps)
            steps = builder.fptosi(steps, integers)
            high = builder.lshr(steps, ir.Constant(integers, [8] * _WIDTH))
            for plane, part in enumerate((high, steps)):
                bytes_ = builder.trunc(part, wide(I8, _WIDTH))
                code.store(bytes_, code.at(out, long(plane * POSITIONS + at)), align=1)
        return scale

    return types.float32(types.int64, types.int64, types.int64), generate
