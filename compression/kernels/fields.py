"""The table of a program: what its numbers stand for.

A program is a table of int64, one row an operation: its function, then addresses, strides in bytes
and sizes under the names below. What changes from step to step lies in tables of rows and tasks.
"""

FIELDS = 33
"""Numbers of one operation, its function included."""
FUNCTION = 0
"""The address of what carries out a chunk: of (operation, chunk, rows, rows' table, tasks' table,
memory of its own)."""
OUT, OUT_STRIDE, PEAK, STEPS, TOTALS, PADDED, QUADS = range(1, 8)
"""Where norm, merge and gate write a row of inputs for a product. ``PEAK`` 0: as float32;
1: as codes of int16; 2: as codes of int8, held in int16; 3: as codes of int16 in planes of their
two bytes, with the totals of each ``PART`` (:mod:`compression.kernels.grouped_tile`) of them. From
``QUADS`` rows on, where it is not 0, inputs of 0, 1 and 2 are written in the order that
:mod:`compression.kernels.row_matrix` takes; 3 needs no other."""
PLANES = 3
IN, IN_STRIDE, SIZE, WEIGHT, EPSILON = range(9, 14)
"""The float32 that norm, gate (of them twice ``SIZE``) and turn read. ``WEIGHT`` 0 rounds a row as
it is. ``EPSILON`` counts 10⁻¹²."""
(HEADS, KV_HEADS, HEAD_SIZE, QUERY_NORM, KEY_NORM, LAYER, LAYOUT, KEY_BLOCK, VALUE_BLOCK, CENTRE,
 QUERIES, WINDOW, PARTS) = range(14, 27)  # fmt: skip
"""Of turn, attend and merge. ``QUERIES`` are turned queries, ``PARTS`` results of attention."""
(MATRIX, MATRIX_STRIDE, SCALES, ZEROS, NUM_GROUPS, BIAS, COLUMNS, ROWS,
 X, X_STRIDE, X_STEPS, X_TOTALS, Y, Y_STRIDE, ADDS, CHUNK, ON_UNIT,
 UNIT_FROM) = range(1, 19)  # fmt: skip
"""Of a product. A chunk is ``CHUNK`` rows of the weight. ``MATRIX_STRIDE`` is from row to row, of
int4 and int5 from tile to tile; ``NUM_GROUPS`` are the scales of a row of those. ``ON_UNIT`` is
the function for ``UNIT_FROM`` rows of inputs and more, 0 where there is no matrix unit."""
ATTEND_ROW = 27
"""Of attend: the three of :mod:`compression.kernels.attention_row` for a single query."""
ATTEND_MIX = 30
"""Of attend: :data:`compression.kernels.attention.MIX`, for several queries."""
ATTEND_ON_UNIT = 31
"""Of attend: the function for several rows on the matrix unit, 0 where none does it."""
PIECES = 32
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
