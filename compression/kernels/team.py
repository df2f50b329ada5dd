"""Threads that carry out a program together.

Each operation's chunks are counted in one shared number, so whoever is free takes the next;
an operation is over when all its chunks are done, not when all threads have arrived. A thread that
the system takes off its processor therefore holds the others up only for a chunk it has begun.
"""

import os
import threading
from functools import cache

import numpy as np
from numba import types

from compression.kernels.atomics import (
    add,
    exchange,
    load,
    pause,
    sched_yield,
    sem_init,
    sem_post,
    sem_wait,
    store,
)
from compression.kernels.compiling import call, compiled, kept
from compression.kernels.fields import BY_ROWS, BY_TASKS, FIELDS, FUNCTION, PIECES
from compression.kernels.row_operations import rows_of_chunk

MOST_OPERATIONS = 1 << 14
"""Of one program: some 1,600 layers."""
SCRATCH_BYTES = 1 << 22
"""Memory of its own that each thread has; the system gives it when it is first written."""

_EPOCH, _OPERATIONS, _COUNT, _ROWS, _ROW_TABLE, _TASK_TABLE, _SLEEPERS = range(7)
_SLEEP = 8
"""Where the semaphore lies, which takes up to 32 bytes."""
_COUNTERS = 16
_LINE = 8
"""Numbers from one operation's counters to the next: a cache line."""
_LINE_BYTES = 64
_CHUNK_BITS = 24
_CHUNKS = (1 << _CHUNK_BITS) - 1
_SPINS = 2000
"""Pauses before a waiting thread lets others run, or goes to sleep: some 40 microseconds."""


@compiled
def _take(place: int, epoch: int) -> int:
    """Take the next chunk of the operation whose counters are at ``place``; -1: none is left."""
    while True:
        taken = load(place)
        # The total was stored before the epoch, so one that belongs to another is never used.
        if taken >> _CHUNK_BITS != epoch or taken & _CHUNKS >= load(place + 16):
            return -1
        if exchange(place, taken, taken + 1):
            return taken & _CHUNKS


@compiled
def _work(shared: int, epoch: int, scratch: int) -> None:
    """Carry out chunks of the program of an epoch until nothing of it is left."""
    count = load(shared + 8 * _COUNT)
    for index in range(count):
        counters = shared + 8 * (_COUNTERS + _LINE * index)
        while True:
            chunk = _take(counters, epoch)
            if chunk < 0:
                break
            # While a chunk is held the program cannot end, so its tables stay.
            operation = load(shared + 8 * _OPERATIONS) + 8 * FIELDS * index
            rows, row_table = load(shared + 8 * _ROWS), load(shared + 8 * _ROW_TABLE)
            task_table = load(shared + 8 * _TASK_TABLE)
            function = load(operation + 8 * FUNCTION)
            call(function, (operation, chunk, rows, row_table, task_table, scratch))
            add(counters + 8, -1)
        spins = 0
        while load(counters + 8) > 0:
            if load(shared + 8 * _EPOCH) != epoch:
                return
            spins += 1
            if spins > _SPINS:
                sched_yield()
            else:
                pause()


@kept
def _serve(shared: int, scratch: int) -> None:
    """Help with every program, for ever."""
    seen = 0
    while True:
        spins = 0
        while load(shared + 8 * _EPOCH) == seen and spins < _SPINS:
            spins += 1
            pause()
        if load(shared + 8 * _EPOCH) == seen:
            _sleep(shared, seen)
        seen = load(shared + 8 * _EPOCH)
        _work(shared, seen, scratch)


@compiled
def _sleep(shared: int, seen: int) -> None:
    """Sleep until the next program, unless it has come meanwhile."""
    sleepers = shared + 8 * _SLEEPERS
    add(sleepers, 1)
    while load(shared + 8 * _EPOCH) != seen:
        count = load(sleepers)
        if count == 0:
            break
        if exchange(sleepers, count, count - 1):
            return
    sem_wait(shared + 8 * _SLEEP)


@kept
def _run(
    shared: int,
    operations: int,
    count: int,
    rows: int,
    row_table: int,
    tasks: int,
    task_table: int,
    scratch: int,
) -> None:
    """Publish a program, wake the others and carry it out with them."""
    epoch = load(shared + 8 * _EPOCH) + 1
    for index in range(count):
        total = load(operations + 8 * (FIELDS * index + PIECES))
        if total == BY_ROWS:
            total = -(-rows // rows_of_chunk(rows))
        elif total == BY_TASKS:
            total = tasks
        counters = shared + 8 * (_COUNTERS + _LINE * index)
        store(counters, 0)
        store(counters + 8, total)
        store(counters + 16, total)
        store(counters, epoch << _CHUNK_BITS)
    store(shared + 8 * _OPERATIONS, operations)
    store(shared + 8 * _COUNT, count)
    store(shared + 8 * _ROWS, rows)
    store(shared + 8 * _ROW_TABLE, row_table)
    store(shared + 8 * _TASK_TABLE, task_table)
    store(shared + 8 * _EPOCH, epoch)
    sleepers = shared + 8 * _SLEEPERS
    asleep = load(sleepers)
    while not exchange(sleepers, asleep, 0):
        asleep = load(sleepers)
    for _ in range(asleep):
        sem_post(shared + 8 * _SLEEP)
    _work(shared, epoch, scratch)


@kept
def _prepare(shared: int) -> None:
    sem_init(shared + 8 * _SLEEP, 0, 0)


def compile_team() -> None:
    """Compile what threads run, or read it where it was kept."""
    for function, count in ((_prepare, 1), (_serve, 2), (_run, 8)):
        function.compile((types.int64,) * count)


def _help(shared: np.ndarray, scratch: np.ndarray) -> None:
    """Serve for ever; the arrays live as long as the thread that reads them."""
    _serve(shared.ctypes.data, scratch.ctypes.data)


class Team:
    """The calling thread and ``threads - 1`` others, which sleep between programs and never end."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = threading.Lock()
        self._shared = np.zeros(_COUNTERS + _LINE * MOST_OPERATIONS, np.int64)
        self._scratch = [_aligned(SCRATCH_BYTES) for _ in range(threads)]
        self._place = _address(self._shared)
        self._own = _address(self._scratch[0])
        compile_team()
        _prepare(self._place)
        for scratch in self._scratch[1:]:
            threading.Thread(target=_help, args=(self._shared, scratch), daemon=True).start()

    def run(
        self,
        operations: np.ndarray,
        rows: int,
        row_table: np.ndarray | None = None,
        task_table: np.ndarray | None = None,
    ) -> None:
        """Carry out a program ``[operations, FIELDS]`` for so many rows of inputs.

        Args:
            operations: contiguous int64, as :mod:`compression.kernels.fields` tells.
            rows: of inputs.
            row_table: ``[rows, ROW_FIELDS]``, where the program turns heads or attends.
            task_table: ``[tasks, TASK_FIELDS]``, where it attends.

        Raises:
            ValueError: the program is longer than :data:`MOST_OPERATIONS`.
        """
        if len(operations) > MOST_OPERATIONS:
            raise ValueError(f"a program of {len(operations)} operations: {MOST_OPERATIONS} fit")
        with self._lock:
            _run(
                self._place,
                _address(operations),
                len(operations),
                rows,
                _address(row_table),
                0 if task_table is None else len(task_table),
                _address(task_table),
                self._own,
            )


def _address(table: np.ndarray | None) -> int:
    """Return where an array begins, 0 for none; several times as fast as ``ctypes.data``."""
    return 0 if table is None else int(table.__array_interface__["data"][0])


def _aligned(size: int) -> np.ndarray:
    """Return ``size`` bytes that begin at a cache line."""
    held = np.empty(size + _LINE_BYTES, np.uint8)
    first = -_address(held) % _LINE_BYTES
    return held[first : first + size]


class _Teams:
    """The teams of this process, one for each number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[int, Team] = {}

    def of(self, threads: int) -> Team:
        """Return the team of so many threads, started when it is first asked for."""
        found = self._made.get(threads)
        if found is None:
            with self._lock:
                found = self._made.get(threads) or Team(threads)
                self._made[threads] = found
        return found


@cache
def _teams(process: int) -> _Teams:
    """Return the teams of a process; a fork has none of its parent's threads."""
    return _Teams()


def team(threads: int) -> Team:
    """Return the one team of so many threads in this process."""
    return _teams(os.getpid()).of(threads)
