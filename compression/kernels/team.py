"""Threads that carry out a program together.

An operation's chunks lie in ranges, one for each thread up to :data:`MOST_RANGES`. Each thread
takes those of its own one after another, so that it reads on where it stopped, and then what is
left of others'. An operation is over when all its chunks are done, not when all threads have
arrived. A thread that the system takes off its processor therefore holds the others up only for a
chunk it has begun, and for those that it has done and not yet counted.
"""

import mmap
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

MOST_RANGES = 8
"""Of an operation's chunks: more threads share them, as each looks at all before it goes on."""

_EPOCH, _OPERATIONS, _COUNT, _ROWS, _ROW_TABLE, _TASK_TABLE, _SLEEPERS, _RANGES = range(8)
_SLEEP = 8
"""Where the semaphore lies, which takes up to 32 bytes."""
_COUNTERS = 16
_LINE = 8
"""Numbers of a cache line."""
_OPERATION = _LINE * (1 + MOST_RANGES)
"""Numbers from one operation's counters to the next: how many chunks are not done and how many
there are; then, each in a line of its own, the next chunk of each range. All but the first hold the
epoch that they are of, too."""
_CHUNK_BITS = 24
"""Of the number of an operation's chunks; beyond them lies the epoch."""
_CHUNKS = (1 << _CHUNK_BITS) - 1
_SPINS = 2000
"""Pauses before a waiting thread lets others run, or goes to sleep: some 40 microseconds."""


@compiled
def _take(place: int, epoch: int, ranges: int, own: int) -> int:
    """Take the next chunk of the operation whose counters are at ``place``; -1: none is left."""
    total = load(place + 8)
    if total >> _CHUNK_BITS != epoch:
        return -1
    total &= _CHUNKS
    for each in range(own, own + ranges):
        which = each % ranges
        counter = place + 8 * _LINE * (1 + which)
        stop = total * (which + 1) // ranges
        while True:
            taken = load(counter)
            if taken >> _CHUNK_BITS > epoch:
                return -1
            # Nothing of it was taken in this epoch yet.
            is_first = taken >> _CHUNK_BITS < epoch
            chunk = total * which // ranges if is_first else taken & _CHUNKS
            if chunk >= stop:
                break
            if exchange(counter, taken, epoch << _CHUNK_BITS | (chunk + 1)):
                return chunk
    return -1


@compiled
def _work(shared: int, epoch: int, own: int, scratch: int) -> None:
    """Carry out chunks of the program of an epoch until nothing of it is left."""
    count, ranges = load(shared + 8 * _COUNT), load(shared + 8 * _RANGES)
    for index in range(count):
        counters = shared + 8 * (_COUNTERS + _OPERATION * index)
        done = 0
        while True:
            chunk = _take(counters, epoch, ranges, own)
            if chunk < 0:
                break
            # While a chunk is not counted the program cannot end, so its tables stay.
            operation = load(shared + 8 * _OPERATIONS) + 8 * FIELDS * index
            rows, row_table = load(shared + 8 * _ROWS), load(shared + 8 * _ROW_TABLE)
            task_table = load(shared + 8 * _TASK_TABLE)
            function = load(operation + 8 * FUNCTION)
            call(function, (operation, chunk, rows, row_table, task_table, scratch))
            done += 1
        if done:
            add(counters, -done)
        spins = 0
        while load(counters) > 0:
            if load(shared + 8 * _EPOCH) != epoch:
                return
            spins += 1
            if spins > _SPINS:
                sched_yield()
            else:
                pause()


@kept
def _serve(shared: int, own: int, scratch: int) -> None:
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
        _work(shared, seen, own, scratch)


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
        counters = shared + 8 * (_COUNTERS + _OPERATION * index)
        store(counters, total)
        store(counters + 8, epoch << _CHUNK_BITS | total)
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
    _work(shared, epoch, 0, scratch)


@kept
def _prepare(shared: int, ranges: int) -> None:
    store(shared + 8 * _RANGES, ranges)
    sem_init(shared + 8 * _SLEEP, 0, 0)


def compile_team() -> None:
    """Compile what threads run, or read it where it was kept."""
    for function, count in ((_prepare, 2), (_serve, 3), (_run, 8)):
        function.compile((types.int64,) * count)


def _help(shared: np.ndarray, own: int, scratch: np.ndarray) -> None:
    """Serve for ever; the arrays live as long as the thread that reads them."""
    _serve(shared.ctypes.data, own, scratch.ctypes.data)


class Team:
    """The calling thread and ``threads - 1`` others, which sleep between programs and never end."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = threading.Lock()
        self._shared = _memory(8 * (_COUNTERS + _OPERATION * MOST_OPERATIONS)).view(np.int64)
        self._scratch = [_memory(SCRATCH_BYTES) for _ in range(threads)]
        self._place = _address(self._shared)
        self._own = _address(self._scratch[0])
        compile_team()
        ranges = min(threads, MOST_RANGES)
        _prepare(self._place, ranges)
        for thread, scratch in enumerate(self._scratch[1:], 1):
            own = thread * ranges // threads
            threading.Thread(target=_help, args=(self._shared, own, scratch), daemon=True).start()

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


def _memory(size: int) -> np.ndarray:
    """Return ``size`` bytes of 0, whole pages; the system gives them when they are first written.

    With zeros of numpy's an engine held some 10 MB more.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


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
