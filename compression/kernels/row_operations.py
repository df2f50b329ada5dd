"""Operations that take rows one by one and write them as inputs for a product."""

import numpy as np

from compression.kernels.compiling import compiled, linked
from compression.kernels.exponential import exponential
from compression.kernels.fields import (
    EPSILON,
    FIELDS,
    IN,
    IN_STRIDE,
    OUT,
    OUT_STRIDE,
    PADDED,
    PEAK,
    PLANES,
    QUADS,
    SIZE,
    STEPS,
    TOTALS,
    WEIGHT,
)
from compression.kernels.grouped_tile import PART
from compression.kernels.matrix_unit import QUAD, TILE, TILE_BYTES, interleave
from compression.kernels.memory import floats, longs
from compression.kernels.rounding import (
    EXACT,
    INT8,
    round_row,
    round_to_bytes,
    round_to_planes,
    split_row,
)

ROWS_AT_A_TIME = 4
"""Rows of inputs that are written together."""
ROW_BYTES = 4 + 4 * ROWS_AT_A_TIME
"""Of a column, in the memory of a thread: its float32, and up to two bf16 of each of those rows."""


@compiled
def rows_of_chunk(rows: int) -> int:
    """Return how many rows of inputs a chunk has of what goes by rows."""
    # A tile's rows share cache lines, so one thread writes them all.
    return TILE if rows >= TILE else ROWS_AT_A_TIME


@compiled
def _as_quads(o, rows):
    return o[QUADS] and rows >= o[QUADS]


@compiled
def write_quads(o, row, rows, scratch):
    """Write the codes in ``scratch`` as the matrix unit reads them, after the last of some rows."""
    last = row % ROWS_AT_A_TIME == ROWS_AT_A_TIME - 1 or row == rows - 1
    if last and _as_quads(o, rows):
        first = row // ROWS_AT_A_TIME * ROWS_AT_A_TIME
        block = o[OUT] + first // TILE * TILE * o[OUT_STRIDE]
        size = o[PADDED] if o[PEAK] else 2 * o[PADDED]
        interleave(
            scratch + 4 * o[SIZE], size, 1 if o[PEAK] == 2 else 2, block + first % TILE * QUAD,
            size // TILE_BYTES,
        )  # fmt: skip


@compiled
def finish(o, row, rows, values, scratch):
    """Write a row of so many as inputs for a product, from float32 at an address.

    Codes that are to become quads wait in ``scratch`` for the other rows of a chunk.
    """
    place = o[OUT] + row * o[OUT_STRIDE]
    if o[PEAK] == 0 and _as_quads(o, rows):
        split_row(values, o[SIZE], scratch + row % ROWS_AT_A_TIME * 4 * o[PADDED], o[PADDED])
        return
    if o[PEAK] == 0:
        source, out = floats(values, o[SIZE]), floats(place, o[PADDED])
        for index in range(o[SIZE]):
            out[index] = source[index]
        for index in range(o[SIZE], o[PADDED]):
            out[index] = 0.0
        return
    step = o[STEPS] + 4 * row
    if o[PEAK] == PLANES:
        totals = o[TOTALS] + 4 * row * (o[SIZE] // PART)
        round_to_planes(values, o[SIZE], place, step, totals)
        return
    peak = EXACT if o[PEAK] == 1 else INT8
    if _as_quads(o, rows):
        codes = scratch + row % ROWS_AT_A_TIME * 2 * o[PADDED]
        round_to_bytes(values, o[SIZE], peak, codes, o[PADDED], step)
        return
    round_row(values, o[SIZE], peak, place, o[PADDED], step)


@compiled
def root_mean_square_norm(x, weight, size, epsilon, out):
    """Write ``x / √(mean(x²) + ε) * weight`` (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    values, factors, normed = floats(x, size), floats(weight, size), floats(out, size)
    total = np.float32(0.0)
    for index in range(size):
        total += values[index] * values[index]
    factor = np.float32(1.0 / np.sqrt(total / np.float32(size) + np.float32(epsilon)))
    for index in range(size):
        normed[index] = values[index] * factor * factors[index]


@compiled
def _norm(o, row, rows, scratch):
    values = o[IN] + row * o[IN_STRIDE]
    if o[WEIGHT]:
        root_mean_square_norm(values, o[WEIGHT], o[SIZE], o[EPSILON] * 1e-12, scratch)
        values = scratch
    finish(o, row, rows, values, scratch + 4 * o[SIZE])


@compiled
def _gate(o, row, rows, scratch):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): ``gate * sigmoid(gate) * up``."""
    size = o[SIZE]
    both, out = floats(o[IN] + row * o[IN_STRIDE], 2 * size), floats(scratch, size)
    for index in range(size):
        gate = both[index]
        out[index] = gate / (np.float32(1.0) + exponential(-gate)) * both[size + index]
    finish(o, row, rows, scratch, scratch + 4 * o[SIZE])


@linked(6)
def _norm_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _norm(o, row, rows, scratch)
        write_quads(o, row, rows, scratch)


@linked(6)
def _gate_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _gate(o, row, rows, scratch)
        write_quads(o, row, rows, scratch)


NORM, GATE = _norm_rows, _gate_rows
"""Norm and round; gate and round."""
