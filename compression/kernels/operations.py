"""What a program is made of: operations, each cut into chunks that threads take.

A program is a table of int64, one row an operation: its function, then addresses, strides in bytes
and sizes under the names below. What changes from step to step lies in tables of rows and tasks.
"""

from types import MappingProxyType

import numpy as np

from compression.kernels.attention import attend, merge
from compression.kernels.compiling import call, compiled, linked
from compression.kernels.exponential import exponential
from compression.kernels.grouped_tile import PART
from compression.kernels.kv import keep, rotate
from compression.kernels.matrix_unit import MANY_INPUTS, QUAD, TILE, TILE_BYTES, interleave
from compression.kernels.memory import floats, longs
from compression.kernels.product import (
    bf16_blocks,
    int4_blocks,
    int5_blocks,
    int8_sums,
    scatter,
)
from compression.kernels.rounding import (
    EXACT,
    INT8,
    round_row,
    round_to_bytes,
    round_to_planes,
    split_row,
)
from compression.schemes import GROUPED_ROWS

FIELDS = 32
"""Numbers of one operation, its function included."""
FUNCTION = 0
"""The address of what carries out a chunk: of (operation, chunk, rows, rows' table, tasks' table,
memory of its own)."""
OUT, OUT_STRIDE, PEAK, STEPS, TOTALS, PADDED, QUADS = range(1, 8)
"""Where norm, merge and gate write a row of inputs for a product. ``PEAK`` 0: as float32;
1: as codes of int16; 2: as codes of int8, held in int16; 3: as codes of int16 in planes of their
two bytes, with the totals of each :data:`PART` of them. Where ``QUADS`` is 1,
from :data:`MANY_INPUTS` rows on inputs of 0, 1 and 2 are written in the order that
:mod:`compression.kernels.row_matrix` takes; 3 needs no other."""
PLANES = 3
IN, IN_STRIDE, SIZE, WEIGHT, EPSILON = range(9, 14)
"""The float32 that norm, gate (of them twice ``SIZE``) and turn read. ``WEIGHT`` 0 rounds a row as
it is. ``EPSILON`` counts 10⁻¹²."""
(HEADS, KV_HEADS, HEAD_SIZE, QUERY_NORM, KEY_NORM, LAYER, LAYOUT, KEY_BLOCK, VALUE_BLOCK, CENTRE,
 QUERIES, WINDOW, PARTS) = range(14, 27)  # fmt: skip
"""Of turn, attend and merge. ``QUERIES`` are turned queries, ``PARTS`` results of attention."""
(MATRIX, MATRIX_STRIDE, SCALES, ZEROS, NUM_GROUPS, BIAS, COLUMNS, ROWS,
 X, X_STRIDE, X_STEPS, X_TOTALS, Y, Y_STRIDE, ADDS, CHUNK, ON_UNIT) = range(1, 18)  # fmt: skip
"""Of a product. A chunk is ``CHUNK`` rows of the weight. ``MATRIX_STRIDE`` is from row to row, of
int4 and int5 from tile to tile; ``NUM_GROUPS`` are the scales of a row of those. ``ON_UNIT`` is
the function for :data:`MANY_INPUTS` rows of inputs and more, 0 where there is no matrix unit."""
SCORE_FUNCTIONS = 27
"""Three of attend: :data:`compression.kernels.attention.SCORES` and ``SUMS`` of keys and values as
they lie, and ``MIX``."""
PIECES = 31
"""How many chunks there are; or one of the next two."""
BY_ROWS, BY_TASKS = 0, -1

ROW_FIELDS = 5
"""A row of inputs: table of its cache, position, address of its turns, slot of its first result,
how many results."""
ROW_CACHE, ROW_POSITION, ROW_TURNS, ROW_SLOT, ROW_SLOTS = range(5)
TASK_FIELDS = 7
TASK_ROW, TASK_COUNT, TASK_HEAD, TASK_HEADS, TASK_START, TASK_STOP, TASK_SLOT = range(7)
"""A task of attention: first row, rows, first key head, key heads, positions, which slot of each
row it fills."""
CACHE_FIELDS = 4
"""Addresses of a layer's keys, their scales, its values, their scales."""
LAYOUT_FIELDS = 12
"""Kind, stride of a token, of a head, scales of a token (heads), pairs of bytes a head, groups: of
keys, then of values."""

INPUTS = 64
"""Rows of inputs that a product takes at a time."""
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
    if o[ON_UNIT] and rows >= MANY_INPUTS:
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
    if o[ON_UNIT] and rows >= MANY_INPUTS:
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
    if o[ON_UNIT] and rows >= MANY_INPUTS:
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
    if o[ON_UNIT] and rows >= MANY_INPUTS:
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


@compiled
def _as_quads(o, rows):
    return o[QUADS] and rows >= MANY_INPUTS


@compiled
def _write_quads(o, row, rows, scratch):
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
def _finish(o, row, rows, values, scratch):
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
def _root_mean_square_norm(x, weight, size, epsilon, out):
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
        _root_mean_square_norm(values, o[WEIGHT], o[SIZE], o[EPSILON] * 1e-12, scratch)
        values = scratch
    _finish(o, row, rows, values, scratch + 4 * o[SIZE])


@compiled
def _gate(o, row, rows, scratch):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): ``gate * sigmoid(gate) * up``."""
    size = o[SIZE]
    both, out = floats(o[IN] + row * o[IN_STRIDE], 2 * size), floats(scratch, size)
    for index in range(size):
        gate = both[index]
        out[index] = gate / (np.float32(1.0) + exponential(-gate)) * both[size + index]
    _finish(o, row, rows, scratch, scratch + 4 * o[SIZE])


@compiled
def _turn(o, row, known, scratch):
    """Norm, turn and rotate the heads of one row; keep its keys and values."""
    size, heads, kv_heads = o[HEAD_SIZE], o[HEADS], o[KV_HEADS]
    layout = longs(o[LAYOUT], LAYOUT_FIELDS)
    cache = longs(known[ROW_CACHE] + 8 * CACHE_FIELDS * o[LAYER], CACHE_FIELDS)
    turns = floats(known[ROW_TURNS], size)
    values = o[IN] + row * o[IN_STRIDE]
    position = known[ROW_POSITION]
    scale = np.float32(1.0 / np.sqrt(size))
    for head in range(heads + kv_heads):
        is_key = head >= heads
        place = values + 4 * head * size
        norm = o[KEY_NORM] if is_key else o[QUERY_NORM]
        if norm:
            _root_mean_square_norm(place, norm, size, o[EPSILON] * 1e-12, scratch)
            place = scratch
        source = floats(place, size)
        target = scratch + 4 * size if is_key else o[QUERIES] + 4 * size * (row * heads + head)
        turned = floats(target, size)
        for pair in range(size // 2):
            real, imaginary = source[2 * pair], source[2 * pair + 1]
            cosine, sine = turns[2 * pair], turns[2 * pair + 1]
            turned[2 * pair] = real * cosine - imaginary * sine
            turned[2 * pair + 1] = real * sine + imaginary * cosine
        if is_key and o[CENTRE]:
            centre = floats(o[CENTRE] + 4 * size * (head - heads), size)
            for index in range(size):
                turned[index] -= centre[index]
        if o[KEY_BLOCK]:
            rotate(target, size, o[KEY_BLOCK])
        if is_key:
            kv_head = head - heads
            keep(
                layout[0], target, size, cache[0] + position * layout[1] + kv_head * layout[2],
                cache[1] + (position * layout[3] + kv_head) * 2 * layout[4], layout[5],
            )  # fmt: skip
        else:
            for index in range(size):
                turned[index] *= scale
    for kv_head in range(kv_heads):
        place = values + 4 * (heads + kv_heads + kv_head) * size
        if o[VALUE_BLOCK]:
            rotate(place, size, o[VALUE_BLOCK])
        keep(
            layout[6], place, size, cache[2] + position * layout[7] + kv_head * layout[8],
            cache[3] + (position * layout[9] + kv_head) * 2 * layout[10], layout[11],
        )  # fmt: skip


@compiled
def _attend(o, task, row_table, scratch):
    size, heads = o[HEAD_SIZE], o[HEADS]
    per_head = heads // o[KV_HEADS]
    known = longs(row_table + 8 * ROW_FIELDS * task[TASK_ROW], ROW_FIELDS)
    cache = longs(known[ROW_CACHE] + 8 * CACHE_FIELDS * o[LAYER], CACHE_FIELDS)
    slot = known[ROW_SLOT] + task[TASK_SLOT]
    part = 4 * (size + 2)
    for index in range(task[TASK_HEADS]):
        head = task[TASK_HEAD] + index
        attend(
            o[QUERIES] + 4 * size * (task[TASK_ROW] * heads + head * per_head), 4 * size * heads,
            task[TASK_COUNT], per_head, size, known[ROW_POSITION], o[WINDOW],
            task[TASK_START], task[TASK_STOP], cache[0:2], cache[2:4], head,
            0 if index else task[TASK_HEADS], longs(o[LAYOUT], LAYOUT_FIELDS),
            o[SCORE_FUNCTIONS : SCORE_FUNCTIONS + 3],
            o[PARTS] + (slot * heads + head * per_head) * part, known[ROW_SLOTS] * heads * part,
            scratch,
        )  # fmt: skip


@compiled
def _merge(o, row, rows, known, scratch):
    size, heads = o[HEAD_SIZE], o[HEADS]
    part = 4 * (size + 2)
    for head in range(heads):
        place = o[PARTS] + (known[ROW_SLOT] * heads + head) * part
        target = scratch + 4 * head * size
        merge(place, known[ROW_SLOTS], heads * part, size, target)
        if o[VALUE_BLOCK]:
            rotate(target, size, o[VALUE_BLOCK])
    _finish(o, row, rows, scratch, scratch + 4 * o[SIZE])


@linked(6)
def _norm_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _norm(o, row, rows, scratch)
        _write_quads(o, row, rows, scratch)


@linked(6)
def _gate_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _gate(o, row, rows, scratch)
        _write_quads(o, row, rows, scratch)


@linked(6)
def _turn_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _turn(o, row, longs(row_table + 8 * ROW_FIELDS * row, ROW_FIELDS), scratch)


@linked(6)
def _merge_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _merge(o, row, rows, longs(row_table + 8 * ROW_FIELDS * row, ROW_FIELDS), scratch)
        _write_quads(o, row, rows, scratch)


@linked(6)
def _attend_task(operation, chunk, rows, row_table, task_table, scratch):
    task = longs(task_table + 8 * TASK_FIELDS * chunk, TASK_FIELDS)
    _attend(longs(operation, FIELDS), task, row_table, scratch)


NORM, GATE, TURN, MERGE, ATTEND = _norm_rows, _gate_rows, _turn_rows, _merge_rows, _attend_task
"""Norm and round; gate and round; turn heads and keep keys and values; merge and round; attend."""
PRODUCTS = MappingProxyType(
    {
        "bf16": _product_bf16,
        "int8": _product_int8,
        "int4": _product_int4,
        "int5": _product_int5,
    }
)
"""By how a weight is held."""
