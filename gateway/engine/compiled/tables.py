"""Which rows a step has, and which tasks their attention is cut into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compression.kernels.attention_tiles import POSITIONS
from compression.kernels.fields import (
    ROW_CACHE,
    ROW_FIELDS,
    ROW_POSITION,
    ROW_SLOT,
    ROW_SLOTS,
    ROW_TURNS,
    TASK_COUNT,
    TASK_FIELDS,
    TASK_HEADS,
    TASK_START,
    TASK_STOP,
)

_BLOCKS = 2
"""Of a task of a single query, at least: a task has queries to prepare and a result to merge."""
_TASKS = 2
"""Of a sequence for each thread, at most, so that threads end together."""
QUERIES = 32
"""Rows of one task where a sequence has several: they share keys and values once decoded."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step."""

    addresses: int
    """Of its cache's table."""
    start: int
    """Its first position."""
    count: int
    turns: int
    """Address of its rotation's factors, complex64 ``[count, head_dim / 2]``."""


def cut(spans: Sequence[Span], most: int, head_dim: int) -> Iterator[list[Span]]:
    """Cut a step of many rows into pieces of at most ``most``, to be run one after another."""
    piece: list[Span] = []
    room = most
    for span in spans:
        done = 0
        while done < span.count:
            count = min(room, span.count - done)
            turns = span.turns + 4 * head_dim * done
            piece.append(Span(span.addresses, span.start + done, count, turns))
            done, room = done + count, room - count
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def positions(span: Span, threads: int, window: int) -> list[tuple[int, int]]:
    """Return the positions of each task of one row: all, where a sequence has several rows.

    They depend on the sequence and on the threads, not on what else is in the step.

    Args:
        span: the sequence.
        threads: that share tasks.
        window: the last positions that any layer sees; 0 for all.
    """
    stop = span.start + span.count
    if span.count > 1:
        return [(0, stop)]
    first = max(0, stop - window) // POSITIONS if window else 0
    blocks = -(-stop // POSITIONS) - first
    count = min(_TASKS * threads, max(1, blocks // _BLOCKS))
    edges = [POSITIONS * (first + blocks * part // count) for part in range(count)]
    return list(zip(edges, [*edges[1:], stop], strict=True))


def row_table(
    spans: Sequence[Span], parts: Sequence[Sequence[tuple[int, int]]], head_dim: int
) -> tuple[np.ndarray, int]:
    """Return ``[rows, ROW_FIELDS]``, and how many slots their attention's results take.

    ``parts`` are the :func:`positions` of each span's tasks.
    """
    rows = np.zeros((sum(span.count for span in spans), ROW_FIELDS), np.int64)
    first = slot = 0
    for span, own in zip(spans, parts, strict=True):
        mine = rows[first : first + span.count]
        places = np.arange(span.count)
        mine[:, ROW_CACHE] = span.addresses
        mine[:, ROW_POSITION] = span.start + places
        mine[:, ROW_TURNS] = span.turns + 4 * head_dim * places
        mine[:, ROW_SLOT] = slot + len(own) * places
        mine[:, ROW_SLOTS] = len(own)
        first, slot = first + span.count, slot + len(own) * span.count
    return rows, slot


def task_table(
    spans: Sequence[Span],
    parts: Sequence[Sequence[tuple[int, int]]],
    kv_heads: int,
    threads: int,
) -> np.ndarray:
    """Return ``[tasks, TASK_FIELDS]``.

    A task is of all key heads, which lie side by side in memory, where there are enough of them;
    else of one. ``parts`` are the :func:`positions` of each span's tasks.
    """
    tasks, first = [], 0
    enough = sum(len(own) for own in parts) >= _TASKS * threads
    for span, own in zip(spans, parts, strict=True):
        heads = kv_heads if enough and span.count == 1 else 1
        for start in range(0, span.count, QUERIES):
            count = min(QUERIES, span.count - start)
            for slot, (begin, stop) in enumerate(own):
                end = min(stop, span.start + start + count)
                tasks += [
                    (first + start, count, head, heads, begin, end, slot)
                    for head in range(0, kv_heads, heads)
                ]
        first += span.count
    tasks.sort(key=_work, reverse=True)
    return np.array(tasks, np.int64).reshape(-1, TASK_FIELDS)


def _work(task: tuple[int, ...]) -> int:
    """Return what a task costs: the largest come first, so that threads end together."""
    return task[TASK_COUNT] * task[TASK_HEADS] * (task[TASK_STOP] - task[TASK_START])
