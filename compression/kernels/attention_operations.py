"""What lies between the products of attention, as operations of a program."""

import numpy as np

from compression.kernels.attention import attend
from compression.kernels.attention_row import attend_row
from compression.kernels.compiling import call, compiled, linked
from compression.kernels.fields import (
    ATTEND_MIX,
    ATTEND_ON_UNIT,
    ATTEND_ROW,
    CACHE_FIELDS,
    CENTRE,
    EPSILON,
    FIELDS,
    HEAD_SIZE,
    HEADS,
    IN,
    IN_STRIDE,
    KEY_BLOCK,
    KEY_NORM,
    KV_HEADS,
    LAYER,
    LAYOUT,
    LAYOUT_FIELDS,
    PARTS,
    QUERIES,
    QUERY_NORM,
    ROW_CACHE,
    ROW_FIELDS,
    ROW_POSITION,
    ROW_SLOT,
    ROW_SLOTS,
    ROW_TURNS,
    SIZE,
    TASK_COUNT,
    TASK_FIELDS,
    TASK_HEAD,
    TASK_HEADS,
    TASK_ROW,
    TASK_SLOT,
    TASK_START,
    TASK_STOP,
    VALUE_BLOCK,
    WINDOW,
)
from compression.kernels.kv import keep, rotate
from compression.kernels.memory import floats, longs
from compression.kernels.row_operations import (
    finish,
    root_mean_square_norm,
    rows_of_chunk,
    write_quads,
)
from compression.kernels.softmax import merge


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
            root_mean_square_norm(place, norm, size, o[EPSILON] * 1e-12, scratch)
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
                layout[0], target, size,
                cache[0] + position * layout[1] + kv_head * layout[2],
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
    caches = known[ROW_CACHE] + 8 * CACHE_FIELDS * o[LAYER]
    cache = longs(caches, CACHE_FIELDS)
    slot = known[ROW_SLOT] + task[TASK_SLOT]
    part = 4 * (size + 2)
    layout = longs(o[LAYOUT], LAYOUT_FIELDS)
    queries = o[QUERIES] + 4 * size * (task[TASK_ROW] * heads + task[TASK_HEAD] * per_head)
    out = o[PARTS] + (slot * heads + task[TASK_HEAD] * per_head) * part
    if task[TASK_COUNT] == 1:
        attend_row(
            queries, per_head, size, known[ROW_POSITION], o[WINDOW], task[TASK_START],
            task[TASK_STOP], cache[0:2], cache[2:4], task[TASK_HEAD], task[TASK_HEADS], layout,
            o[ATTEND_ROW : ATTEND_ROW + 3], out, scratch,
        )  # fmt: skip
    elif o[ATTEND_ON_UNIT]:
        call(
            o[ATTEND_ON_UNIT],
            (queries, 4 * size * heads, task[TASK_COUNT], per_head, size, known[ROW_POSITION],
             o[WINDOW], task[TASK_START], task[TASK_STOP], caches, o[LAYOUT], task[TASK_HEAD], out,
             known[ROW_SLOTS] * heads * part, scratch),
        )  # fmt: skip
    else:
        attend(
            queries, 4 * size * heads, task[TASK_COUNT], per_head, size, known[ROW_POSITION],
            o[WINDOW], task[TASK_START], task[TASK_STOP], cache[0:2], cache[2:4], task[TASK_HEAD],
            layout, o[ATTEND_MIX], out, known[ROW_SLOTS] * heads * part, scratch,
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
    finish(o, row, rows, scratch, scratch + 4 * o[SIZE])


@linked(6)
def _turn_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _turn(o, row, longs(row_table + 8 * ROW_FIELDS * row, ROW_FIELDS), scratch)


@linked(6)
def _attend_task(operation, chunk, rows, row_table, task_table, scratch):
    task = longs(task_table + 8 * TASK_FIELDS * chunk, TASK_FIELDS)
    _attend(longs(operation, FIELDS), task, row_table, scratch)


@linked(6)
def _merge_rows(operation, chunk, rows, row_table, task_table, scratch):
    o, num = longs(operation, FIELDS), rows_of_chunk(rows)
    for row in range(chunk * num, min(rows, (chunk + 1) * num)):
        _merge(o, row, rows, longs(row_table + 8 * ROW_FIELDS * row, ROW_FIELDS), scratch)
        write_quads(o, row, rows, scratch)


TURN, ATTEND, MERGE = _turn_rows, _attend_task, _merge_rows
"""Turn heads and keep keys and values; attend; merge and round."""
