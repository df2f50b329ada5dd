"""What a single query's attention calls: scores and sums over keys and values as they are kept."""

from typing import Any

from compression.kernels.attention_integers import round_queries, score_integers, sum_integers
from compression.kernels.attention_tiles import INT4, INT8, PLAIN, POSITIONS, score_tile, value_tile
from compression.kernels.compiling import compiled_as, linked


def _scores_of(kind: int) -> Any:
    """Return a function that covers any number of queries with tiles of up to four."""
    one, two, three, four = (score_tile(kind, count) for count in (1, 2, 3, 4))

    @compiled_as(f"scores_of_{kind}")
    def run(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out):
        first = 0
        while first < num:
            query, place = queries + 4 * first * size, out + 4 * first * POSITIONS
            if num - first >= 4:
                four(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                     POSITIONS)  # fmt: skip
            elif num - first == 3:
                three(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                      POSITIONS)  # fmt: skip
            elif num - first == 2:
                two(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                    POSITIONS)  # fmt: skip
            else:
                one(query, size, keys, stride, scales, scale_stride, group, count, ahead, place,
                    POSITIONS)  # fmt: skip
            first += 4

    return run


def _sums_of(kind: int) -> Any:
    """Return the same for values."""
    one, two, three, four = (value_tile(kind, count) for count in (1, 2, 3, 4))

    @compiled_as(f"sums_of_{kind}")
    def run(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out):
        first, pitch = 0, 4 * (size + 2)
        while first < num:
            weight, place = weights + 4 * first * POSITIONS, out + first * pitch
            if num - first >= 4:
                four(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                     ahead, place, pitch)  # fmt: skip
            elif num - first == 3:
                three(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                      ahead, place, pitch)  # fmt: skip
            elif num - first == 2:
                two(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                    ahead, place, pitch)  # fmt: skip
            else:
                one(weight, POSITIONS, size, values, stride, scales, scale_stride, group, count,
                    ahead, place, pitch)  # fmt: skip
            first += 4

    return run


_plain_scores, _plain_sums = _scores_of(PLAIN), _sums_of(PLAIN)
_int8_scores, _int8_sums = _scores_of(INT8), _sums_of(INT8)
_int4_scores, _int4_sums = _scores_of(INT4), _sums_of(INT4)


@linked(12)
def _score_plain(
    queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _plain_scores(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _sum_plain(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _plain_sums(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _score_int8(
    queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _int8_scores(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _sum_int8(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _int8_sums(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _score_int4(
    queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _int4_scores(queries, num, size, keys, stride, scales, scale_stride, group, count, ahead, out)


@linked(12)
def _sum_int4(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    _int4_sums(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out)


@linked(5)
def _round_queries(queries, heads, per_head, size, out):
    round_queries(queries, heads, per_head, size, out)


@linked(12)
def _score_integers(
    ready, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    score_integers(ready, num, size, keys, stride, scales, scale_stride, count, ahead, out, scratch)


@linked(12)
def _sum_integers(
    weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch
):
    sum_integers(weights, num, size, values, stride, scales, scale_stride, count, ahead, out,
                 scratch)  # fmt: skip


SCORES = (_score_plain, _score_int8, _score_int4)
"""By how keys are held: functions that write scores of float32 queries."""
SUMS = (_sum_plain, _sum_int8, _sum_int4)
"""By how values are held: functions that add weighted ones."""
ROUND_QUERIES, SCORE_INTEGERS = _round_queries, _score_integers
"""A function that makes queries int16, and one that writes the scores of such over int8 keys."""
SUM_INTEGERS = _sum_integers
"""A function that adds int8 values in integers."""
