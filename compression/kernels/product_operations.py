"""Products of a weight with rows of inputs, as operations of a program."""

from types import MappingProxyType

from compression.kernels.compiling import call, compiled, linked
from compression.kernels.fields import (
    ADDS,
    BIAS,
    CHUNK,
    COLUMNS,
    FIELDS,
    MATRIX,
    MATRIX_STRIDE,
    NUM_GROUPS,
    ON_UNIT,
    ROWS,
    SCALES,
    UNIT_FROM,
    X_STEPS,
    X_STRIDE,
    X_TOTALS,
    Y_STRIDE,
    ZEROS,
    X,
    Y,
)
from compression.kernels.grouped_tile import PART
from compression.kernels.memory import longs
from compression.kernels.product import bf16_blocks, int4_blocks, int5_blocks, int8_sums, scatter
from compression.schemes import GROUPED_ROWS

INPUTS = 64
"""Rows of inputs that a product takes at a time."""


@compiled
def _inputs_of(o, start):
    """Return where inputs from row ``start`` on lie: values, steps and totals."""
    return (
        o[X] + start * o[X_STRIDE],
        o[X_STEPS] + 4 * start,
        o[X_TOTALS] + 4 * start * (o[COLUMNS] // PART),
    )


@linked(6)
def _product_bf16(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    if o[ON_UNIT] and rows >= o[UNIT_FROM]:
        call(o[ON_UNIT], (operation, chunk, rows, row_table, task_table, scratch))
        return
    first = chunk * o[CHUNK]
    count = min(o[CHUNK], o[ROWS] - first)
    w = o[MATRIX] + first * o[MATRIX_STRIDE]
    for start in range(0, rows, INPUTS):
        values, _, _ = _inputs_of(o, start)
        num = min(INPUTS, rows - start)
        bf16_blocks(w, o[MATRIX_STRIDE], values, o[X_STRIDE], o[COLUMNS], count, num, scratch)
        y = o[Y] + start * o[Y_STRIDE]
        scatter(0, o[BIAS], first, count, 0, num, y, o[Y_STRIDE], o[ADDS], scratch, count)


@linked(6)
def _product_int8(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    if o[ON_UNIT] and rows >= o[UNIT_FROM]:
        call(o[ON_UNIT], (operation, chunk, rows, row_table, task_table, scratch))
        return
    first = chunk * o[CHUNK]
    count = min(o[CHUNK], o[ROWS] - first)
    w = o[MATRIX] + first * o[MATRIX_STRIDE]
    for start in range(0, rows, INPUTS):
        values, steps, _ = _inputs_of(o, start)
        num = min(INPUTS, rows - start)
        int8_sums(w, o[MATRIX_STRIDE], o[COLUMNS], count, values, o[X_STRIDE], num, scratch)
        y = o[Y] + start * o[Y_STRIDE]
        scatter(
            o[SCALES], o[BIAS], first, count, steps, num, y, o[Y_STRIDE], o[ADDS], scratch, count
        )


@compiled
def tiles_of(o, chunk):
    """Return a chunk of a weight in groups: first row, rows, whole tiles' rows, where it lies."""
    first = chunk * o[CHUNK]
    count = min(o[CHUNK], o[ROWS] - first)
    whole = -(-count // GROUPED_ROWS) * GROUPED_ROWS
    groups = o[NUM_GROUPS]
    return (
        first, count, whole, o[MATRIX] + first // GROUPED_ROWS * o[MATRIX_STRIDE],
        o[SCALES] + 2 * first * groups, o[ZEROS] + first * groups,
    )  # fmt: skip


@linked(6)
def _product_int4(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    if o[ON_UNIT] and rows >= o[UNIT_FROM]:
        call(o[ON_UNIT], (operation, chunk, rows, row_table, task_table, scratch))
        return
    first, count, whole, w, scales, zeros = tiles_of(o, chunk)
    for start in range(0, rows, INPUTS):
        values, steps, totals = _inputs_of(o, start)
        num = min(INPUTS, rows - start)
        int4_blocks(
            w, o[MATRIX_STRIDE], scales, zeros, o[NUM_GROUPS], values, o[X_STRIDE], totals,
            o[COLUMNS], whole, num, scratch,
        )  # fmt: skip
        y = o[Y] + start * o[Y_STRIDE]
        scatter(0, o[BIAS], first, count, steps, num, y, o[Y_STRIDE], o[ADDS], scratch, whole)


@linked(6)
def _product_int5(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    if o[ON_UNIT] and rows >= o[UNIT_FROM]:
        call(o[ON_UNIT], (operation, chunk, rows, row_table, task_table, scratch))
        return
    first, count, whole, w, scales, zeros = tiles_of(o, chunk)
    for start in range(0, rows, INPUTS):
        values, steps, totals = _inputs_of(o, start)
        num = min(INPUTS, rows - start)
        int5_blocks(
            w, o[MATRIX_STRIDE], scales, zeros, o[NUM_GROUPS], values, o[X_STRIDE], totals,
            o[COLUMNS], whole, num, scratch,
        )  # fmt: skip
        y = o[Y] + start * o[Y_STRIDE]
        scatter(0, o[BIAS], first, count, steps, num, y, o[Y_STRIDE], o[ADDS], scratch, whole)


PRODUCTS = MappingProxyType(
    {
        "bf16": _product_bf16,
        "int8": _product_int8,
        "int4": _product_int4,
        "int5": _product_int5,
    }
)
"""By how a weight is held."""
