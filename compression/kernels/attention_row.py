"""Attention of a single query over the kept keys and values of some heads, as they lie.

Reading them takes about as long as working on them, and the processor does not foresee strides
from token to token. So while a block of positions is worked on, the next one is asked for, a few
lines at a time between the sums: as many at once would wait for one another.

What depends on how keys and values are kept are three functions, called by their addresses:

- prepare(queries, heads, per_head, size, out) writes the float32 queries of some heads as
  the next one takes them, :func:`ready_bytes` a head; 0 where it takes them as they are.
- score(ready, num, size, keys, stride, scales, scale_stride, group, count, ahead, out, scratch)
  writes the products of a head's queries with ``count`` keys, :data:`POSITIONS` a query. Strides
  are bytes, ``group`` is an int4 group's channels; keys at ``ahead`` are asked for.
- add(weights, num, size, values, stride, scales, scale_stride, group, count, ahead, out, scratch)
  adds weighted values to ``size`` float32 of each query, two numbers behind them.
"""

from numba.extending import register_jitable

from compression.kernels.attention_tiles import LINE, POSITIONS
from compression.kernels.compiling import call, compiled
from compression.kernels.memory import floats, prefetch
from compression.kernels.softmax import begin, weigh

_PREPARE, _SCORE, _ADD = range(3)


@register_jitable
def ready_bytes(per_head: int, size: int) -> int:
    """Return the room for the prepared queries of a head, whole cache lines."""
    return -(-per_head * (2 * size + 4) // LINE) * LINE


def scratch_bytes(size: int, heads: int, per_head: int) -> int:
    """Return the memory of its own that a thread needs for so many heads of single queries."""
    results = 4 * per_head * (POSITIONS + size + 2) + LINE
    return 8 * POSITIONS * size + results + heads * ready_bytes(per_head, size)


@compiled
def attend_row(
    queries, per_head, size, position, window, start, stop,
    key, value, head, heads, layout, functions, out, scratch,
):  # fmt: skip
    """Attend from the queries of ``heads`` key heads, ``head`` the first, to ``start…stop``.

    Of these positions the query sees the last ``window`` up to its own (0: all). ``layout`` holds
    kinds, strides, and groups of keys and values. ``out`` gets a result of
    :mod:`compression.kernels.softmax` for each of ``per_head`` queries of each head: to be merged
    with those of other positions.
    """
    first = max(start, position - window + 1) if window else start
    weights = scratch + 8 * POSITIONS * size
    results = weights + 4 * per_head * POSITIONS
    ready, step = queries, 4 * per_head * size
    if first < stop:
        count = min(POSITIONS, stop - first)
        _ask(key[0] + first * layout[1] + head * layout[2], layout[1], layout[2], count)
        _ask(value[0] + first * layout[7] + head * layout[8], layout[7], layout[8], count)
        if functions[_PREPARE]:
            ready = -(-(results + 4 * per_head * (size + 2)) // LINE) * LINE
            step = ready_bytes(per_head, size)
            call(functions[_PREPARE], (queries, heads, per_head, size, ready))
    for own in range(head, head + heads):
        for each in range(per_head):
            begin(results + 4 * each * (size + 2), size)
        _attend_head(
            ready + (own - head) * step, per_head, size, position, window, first, stop, key, value,
            own, own + 1 < head + heads, layout, functions, weights, results, scratch,
        )  # fmt: skip
        source = floats(results, per_head * (size + 2))
        target = floats(out + 4 * (own - head) * per_head * (size + 2), per_head * (size + 2))
        for index in range(per_head * (size + 2)):
            target[index] = source[index]


@compiled
def _attend_head(
    ready, per_head, size, position, window, first, stop,
    key, value, head, has_next, layout, functions, weights, results, scratch,
):  # fmt: skip
    for block in range(first, stop, POSITIONS):
        count = min(POSITIONS, stop - block)
        next_block, next_head = block + POSITIONS, head
        if next_block >= stop:
            next_block, next_head = (first, head + 1) if has_next else (block, head)
        call(functions[_SCORE],
             (ready, per_head, size, key[0] + block * layout[1] + head * layout[2], layout[1],
              key[1] + (block * layout[3] + head) * 2 * layout[4], layout[3] * 2 * layout[4],
              size // max(1, layout[5]), count,
              key[0] + next_block * layout[1] + next_head * layout[2], weights,
              scratch))  # fmt: skip
        seen = min(count, position + 1 - block)
        hidden = max(0, position - window + 1 - block) if window else 0
        for each in range(per_head):
            result = floats(results + 4 * each * (size + 2), size + 2)
            weigh(weights + 4 * each * POSITIONS, hidden, seen, size, result)
        call(functions[_ADD],
             (weights, per_head, size, value[0] + block * layout[7] + head * layout[8], layout[7],
              value[1] + (block * layout[9] + head) * 2 * layout[10], layout[9] * 2 * layout[10],
              size // max(1, layout[11]), count,
              value[0] + next_block * layout[7] + next_head * layout[8], results,
              scratch))  # fmt: skip


@compiled
def _ask(place, stride, size, count):
    """Ask for a head of some tokens."""
    for token in range(count):
        for line in range(0, size, LINE):
            prefetch(place + token * stride + line)
