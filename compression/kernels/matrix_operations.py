"""Products on the matrix unit, as operations of a program."""

from types import MappingProxyType

from compression.kernels.compiling import linked
from compression.kernels.fields import (
    ADDS,
    BIAS,
    CHUNK,
    COLUMNS,
    FIELDS,
    MATRIX,
    MATRIX_STRIDE,
    NUM_GROUPS,
    PLANES,
    ROWS,
    SCALES,
    X_STEPS,
    X_STRIDE,
    X_TOTALS,
    Y_STRIDE,
    X,
    Y,
)
from compression.kernels.grouped_matrix import int4_on_unit, int5_on_unit
from compression.kernels.memory import longs
from compression.kernels.product_operations import tiles_of
from compression.kernels.row_matrix import bf16_on_unit, int8_dynamic_on_unit, int8_on_unit


@linked(6)
def _int8(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    first = chunk * o[CHUNK]
    int8_on_unit(
        o[MATRIX] + first * o[MATRIX_STRIDE], o[MATRIX_STRIDE], o[SCALES], o[BIAS], first,
        min(o[CHUNK], o[ROWS] - first), o[X], o[X_STRIDE], o[X_STEPS], rows, o[Y], o[Y_STRIDE],
        o[ADDS], scratch,
    )  # fmt: skip


@linked(6)
def _int8_dynamic(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    first = chunk * o[CHUNK]
    int8_dynamic_on_unit(
        o[MATRIX] + first * o[MATRIX_STRIDE], o[MATRIX_STRIDE], o[SCALES], o[BIAS], first,
        min(o[CHUNK], o[ROWS] - first), o[X], o[X_STRIDE], o[X_STEPS], rows, o[Y], o[Y_STRIDE],
        o[ADDS], scratch,
    )  # fmt: skip


@linked(6)
def _bf16(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    first = chunk * o[CHUNK]
    bf16_on_unit(
        o[MATRIX] + first * o[MATRIX_STRIDE], o[MATRIX_STRIDE], 0, o[BIAS], first,
        min(o[CHUNK], o[ROWS] - first), o[X], o[X_STRIDE], 0, rows, o[Y], o[Y_STRIDE], o[ADDS],
        scratch,
    )  # fmt: skip


@linked(6)
def _int4(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    first, count, _, w, scales, zeros = tiles_of(o, chunk)
    int4_on_unit(
        w, o[MATRIX_STRIDE], scales, zeros, o[NUM_GROUPS], o[BIAS], first, count, o[X],
        o[X_STRIDE], o[X_TOTALS], o[COLUMNS], o[X_STEPS], rows, o[Y], o[Y_STRIDE], o[ADDS],
        scratch,
    )  # fmt: skip


@linked(6)
def _int5(operation, chunk, rows, row_table, task_table, scratch):
    o = longs(operation, FIELDS)
    first, count, _, w, scales, zeros = tiles_of(o, chunk)
    int5_on_unit(
        w, o[MATRIX_STRIDE], scales, zeros, o[NUM_GROUPS], o[BIAS], first, count, o[X],
        o[X_STRIDE], o[X_TOTALS], o[COLUMNS], o[X_STEPS], rows, o[Y], o[Y_STRIDE], o[ADDS],
        scratch,
    )  # fmt: skip


ON_UNIT = MappingProxyType(
    {
        ("bf16", 0): _bf16,
        ("int8", 1): _int8,
        ("int8", 2): _int8_dynamic,
        ("int4", PLANES): _int4,
        ("int5", PLANES): _int5,
    }
)
"""By how a weight is held and its inputs are rounded."""
UNIT_FROM = MappingProxyType({"bf16": 1, "int8": 2, "int5": 9, "int4": 11})
"""Rows of inputs from which on the unit is faster than vectors, by how a weight is held."""
