"""Whole rows of logits as they were served, kept until they were compared or are given up.

One slab of memory an answer: only what is written is backed by the system, and all of it goes back
at once. The rows stay float32: a divergence weighs the error of each logarithm with a probability
that is not known yet, and 16 bits leave errors of a thousandth nat.
"""

import threading
import time
from collections.abc import Callable

import torch

from gateway.capture import MAX_ROWS_WAIT_S

MAX_AGE_S = 60.0
"""Since the last row: who wants them asks for the answer's numbers right after it."""


class RowBudget:
    """The bytes that all kept rows of an engine may have; for any thread."""

    def __init__(self, num_bytes: int) -> None:
        self.total = num_bytes
        self._lock = threading.Lock()
        self._used = 0

    @property
    def used(self) -> int:
        """Return the bytes of the rows that are kept."""
        return self._used

    def take(self, num_bytes: int) -> bool:
        """Take some; return False where there are not as many left."""
        with self._lock:
            if self._used + num_bytes > self.total:
                return False
            self._used += num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """Return what was taken."""
        with self._lock:
            self._used -= num_bytes


class Rows:
    """The logits of one answer; the step thread adds, any thread lets go.

    All of them or none: an answer longer than ``limit`` tokens, or one that finds no room, keeps
    nothing.
    """

    def __init__(
        self,
        budget: RowBudget,
        limit: int,
        vocab_size: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keep_until = clock() + MAX_ROWS_WAIT_S
        """On the monotonic clock."""
        self._budget = budget
        self._limit = limit
        self._vocab_size = vocab_size
        self._clock = clock
        self._lock = threading.Lock()
        self._slab: torch.Tensor | None = torch.empty(limit, vocab_size)
        self._count = 0

    @property
    def count(self) -> int | None:
        """Return how many rows there are; None if they were given up."""
        return None if self._slab is None else self._count

    def take(self, row: torch.Tensor) -> None:
        """Keep a copy of the float32 logits ``row`` [vocab] of the next token."""
        with self._lock:
            slab = self._slab
            if slab is None:
                return
            if self._count < self._limit and self._budget.take(self._row_bytes):
                slab[self._count].copy_(row)
                self._count += 1
                self.keep_until = self._clock() + MAX_AGE_S
                return
        self.let_go()

    def part(self, start: int, stop: int) -> list[memoryview] | None:
        """Return the bytes of some rows, one view each; None if they are not there."""
        with self._lock:
            if self._slab is None or not 0 <= start < stop <= self._count:
                return None
            return [memoryview(row.numpy()).cast("B") for row in self._slab[start:stop]]

    def await_score(self) -> None:
        """Stay for as long as a score may wait for its turn."""
        self.keep_until = self._clock() + MAX_ROWS_WAIT_S

    def let_go(self) -> None:
        """Give the memory back; safe to repeat."""
        with self._lock:
            if self._slab is not None:
                self._slab = None
                self._budget.give_back(self._count * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return 4 * self._vocab_size
