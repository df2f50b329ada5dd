"""The innermost loops of attention on the matrix unit: a block of 64 keys and 16 queries.

Scores are products of keys as they lie, the first factor, and of queries as four-byte pairs of
channels, the second, each query as the sum of two bf16. Values are the second factor of the
weighted sums, as pairs of tokens; weights are the first, each the sum of two bf16.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from compression.kernels.attention_tiles import PLAIN
from compression.kernels.llvm import F32, I8, I16, I32, Code, long, wide
from compression.kernels.matrix_unit import BF16_TIMES_BF16, TILE, TILE_BYTES, TileCode

BLOCK = 64
"""Keys that are taken together."""
CHANNELS = 32
"""The size of a head is a multiple: a tile's row of bf16."""
SUMS_BYTES = BLOCK * TILE * 4
_BYTES = TILE * TILE_BYTES
_FLOATS, _INTS = wide(F32, TILE), wide(I32, TILE)
_KEY_TILES = BLOCK // TILE
_PLANES = 2
"""Every float32 is the sum of two bf16."""
_ROW = 4 * BLOCK
"""Bytes of a query's scores."""


@intrinsic
def configure(typing_context: Any) -> Any:
    """Set all tiles to their full size."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        TileCode(builder).configure("attention_tiles", [TILE] * 8, [TILE_BYTES] * 8)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def multiply_keys(
    typing_context: Any, keys: Any, stride: Any, queries: Any, size: Any, sums: Any
) -> Any:
    """Write products of keys and queries, float32 ``[64 keys, 16 queries]``.

    ``keys`` are bf16 heads of ``size`` channels, ``stride`` bytes apart; ``queries`` are two tiles
    for each 32 channels, of upper and lower halves, whose products are summed.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        keys, stride, queries, size, sums = arguments
        code = TileCode(builder)
        for tile in range(_KEY_TILES):
            code.zero_tile(tile)

        def add(channel: Any) -> None:
            place = code.at(queries, code.times(channel, _PLANES * _BYTES // CHANNELS))
            for plane in range(_PLANES):
                tile = code.at(place, long(plane * _BYTES))
                code.load_tile(6 + plane, tile, long(TILE_BYTES))
            for tile in range(_KEY_TILES):
                kept = 4 + tile % 2
                row = code.at(keys, code.times(stride, TILE * tile), code.times(channel, 2))
                code.load_tile(kept, row, stride)
                for plane in range(_PLANES):
                    code.multiply_tiles(BF16_TIMES_BF16, tile, kept, 6 + plane)

        code.steps(long(0), size, CHANNELS, add)
        for tile in range(_KEY_TILES):
            code.store_tile(tile, code.at(sums, long(tile * _BYTES)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def turn(typing_context: Any, sums: Any, out: Any) -> Any:
    """Write ``[64 keys, 16 queries]`` as ``[16 queries, 64 keys]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        sums, out = arguments
        code = Code(builder)
        for tile in range(_KEY_TILES):
            rows = [
                code.load(code.at(sums, long(tile * _BYTES + row * TILE_BYTES)), _FLOATS)
                for row in range(TILE)
            ]
            for index, row in enumerate(code.transpose(rows)):
                code.store(row, code.at(out, long(index * _ROW + tile * TILE_BYTES)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def weights(*, scaled: bool) -> Any:
    """Return ``weigh(place, largest, scales)``: ``exp(x - largest)`` of 64 scores.

    Each is written over them as two bf16, the upper halves of all and then the lower ones; the
    result is the sum of all. Scaled ones are written times the float32 at ``scales``, which the
    sum is without.
    """

    @intrinsic
    def weigh(typing_context: Any, place: Any, largest: Any, scales: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            place, largest, scales = arguments
            code = Code(builder)
            less, found, written = code.splat(largest, _FLOATS), [], []
            for at in range(0, _ROW, TILE_BYTES):
                scores = code.load(code.at(place, long(at)), _FLOATS)
                found.append(code.exponential(builder.fsub(scores, less)))
                factors = code.load(code.at(scales, long(at)), _FLOATS) if scaled else None
                written.append(builder.fmul(found[-1], factors) if scaled else found[-1])
            _store_split(code, written, place, long(_ROW // 2))
            return code.total(code.sum(found))

        return types.float32(types.int64, types.float32, types.int64), generate

    return weigh


@intrinsic
def split_heads(typing_context: Any, source: Any, size: Any, out: Any) -> Any:
    """Write ``size`` float32 as two bf16 each, the upper halves of all and then the lower ones."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        source, size, out = arguments
        code = Code(builder)

        def block(channel: Any) -> None:
            place = code.at(source, code.times(channel, 4))
            vectors = [code.load(code.at(place, long(at)), _FLOATS) for at in (0, TILE_BYTES)]
            _store_split(code, vectors, code.at(out, code.times(channel, 2)), code.times(size, 2))

        code.steps(long(0), size, CHANNELS, block)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


def _store_split(code: Code, vectors: list[Any], place: Any, apart: Any) -> None:
    """Store float32 as two bf16 each, the lower halves ``apart`` bytes behind the upper ones.

    Their sums are within 2⁻¹⁷ of each number. NaN stays one.
    """
    builder, half = code.builder, ir.Constant(_INTS, [0x8000] * TILE)
    lower_place = code.at(place, apart)
    upper_halves = ir.Constant(wide(I32, 2 * TILE), list(range(1, 4 * TILE, 2)))
    for index in range(0, len(vectors), 2):
        upper, lower = [], []
        for vector in vectors[index : index + 2]:
            bits = builder.add(builder.bitcast(vector, _INTS), half)
            cut = builder.and_(bits, ir.Constant(_INTS, [-0x10000] * TILE))
            rest = builder.fsub(vector, builder.bitcast(cut, _FLOATS))
            rest = builder.add(builder.bitcast(rest, _INTS), half)
            upper.append(builder.bitcast(bits, wide(I16, 2 * TILE)))
            lower.append(builder.bitcast(rest, wide(I16, 2 * TILE)))
        for both, first in ((upper, place), (lower, lower_place)):
            halves = builder.shuffle_vector(*both, upper_halves)
            code.store(halves, code.at(first, long(2 * TILE * index)))


def _as_bf16(code: Code, kind: int, place: Any, channel: Any) -> Any:
    """Return 32 channels of a head, as 16 bits each: bf16 as they lie, int8 as bf16."""
    builder = code.builder
    if kind == PLAIN:
        return code.load(code.at(place, code.times(channel, 2)), wide(I16, CHANNELS))
    codes = code.load(code.at(place, channel), wide(I8, CHANNELS))
    integers = builder.sext(codes, wide(I32, CHANNELS))
    bits = builder.bitcast(builder.sitofp(integers, wide(F32, CHANNELS)), integers.type)
    shifted = builder.lshr(bits, ir.Constant(integers.type, [16] * CHANNELS))
    return builder.trunc(shifted, wide(I16, CHANNELS))


def kept_keys(kind: int) -> Any:
    """Return ``keep(place, size, out)``: a key's ``size`` channels as bf16."""

    @intrinsic
    def keep(typing_context: Any, place: Any, size: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            place, size, out = arguments
            code = Code(builder)

            def block(channel: Any) -> None:
                found = _as_bf16(code, kind, place, channel)
                code.store(found, code.at(out, code.times(channel, 2)))

            code.steps(long(0), size, CHANNELS, block)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return keep


def paired_values(kind: int) -> Any:
    """Return ``pair(first, second, size, out)``: two tokens' values, side by side by channels.

    They are a row of tiles of 16 channels each, in which 32 tokens take 16 rows.
    """
    order = [side + lane for lane in range(CHANNELS) for side in (0, CHANNELS)]

    @intrinsic
    def pair(typing_context: Any, first: Any, second: Any, size: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            first, second, size, out = arguments
            code = Code(builder)

            def block(channel: Any) -> None:
                both = [_as_bf16(code, kind, place, channel) for place in (first, second)]
                tile = code.at(out, code.times(channel, _BYTES // TILE))
                for half in range(2):
                    lanes = ir.Constant(wide(I32, CHANNELS), order[half * CHANNELS :][:CHANNELS])
                    pairs = builder.shuffle_vector(*both, lanes)
                    code.store(pairs, code.at(tile, long(half * _BYTES)))

            code.steps(long(0), size, CHANNELS, block)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return pair


@intrinsic
def add_values(
    typing_context: Any, weights: Any, pairs: Any, size: Any, out: Any, out_stride: Any
) -> Any:
    """Add sums of 64 values under the weights of 16 queries to float32 heads, ``out_stride`` apart.

    ``weights`` are 128 bf16 a query, the upper halves of all and then the lower ones.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        weights, pairs, size, out, out_stride = arguments
        code = TileCode(builder)
        kept = [(half, plane) for half in range(2) for plane in range(_PLANES)]
        for index, (half, plane) in enumerate(kept):
            place = code.at(weights, long(half * TILE_BYTES + plane * _ROW // 2))
            code.load_tile(4 + index, place, long(_ROW))

        def add(channel: Any) -> None:
            place = code.at(out, code.times(channel, 4))
            places = [place, code.at(place, long(TILE_BYTES))]
            for side, each in enumerate(places):
                code.load_tile(side, each, out_stride)
            for half in range(2):
                first = code.at(pairs, code.times(size, half * 2 * CHANNELS),
                                code.times(channel, _BYTES // TILE))  # fmt: skip
                for side in range(2):
                    tile = code.at(first, long(side * _BYTES))
                    code.load_tile(2 + side, tile, long(TILE_BYTES))
                for plane in range(_PLANES):
                    for side in range(2):
                        left = 4 + kept.index((half, plane))
                        code.multiply_tiles(BF16_TIMES_BF16, side, left, 2 + side)
            for side, each in enumerate(places):
                code.store_tile(side, each, out_stride)

        code.steps(long(0), size, CHANNELS, add)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
