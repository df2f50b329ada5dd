"""What was noted of answers while they were generated, kept until it is asked for, once."""

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.capture import Wish
from gateway.engine.rows import RowBudget, Rows

MAX_KEPT = 64
MAX_BYTES = 64 * 1024 * 1024
"""Of all recordings together, each counted as long as it may become."""
MAX_AGE_S = 60.0
"""Since the last token: who wants a recording asks right after the answer."""
MAX_WAIT_S = 300.0
"""For the first token: one that comes later is not noted."""
TEND_EVERY_S = 5.0

_NUMBER_BYTES = 4


class Recording:
    """The tokens of one answer in numbers; the step thread fills it."""

    def __init__(
        self,
        prompt_ids: Iterable[int],
        *,
        num_top: int,
        max_tokens: int,
        rows: Rows | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_top = num_top
        self.rows = rows
        """The whole distributions, where they were asked for."""
        self.keep_until = clock() + MAX_WAIT_S
        """On the monotonic clock."""
        self.is_dropped = False
        self._clock = clock
        self._prompt_ids = array("i", prompt_ids)
        self._token_ids = array("i")
        self._logprobs = array("f")
        self._top_ids = array("i")
        self._top_logprobs = array("f")
        a_token = 2 * _NUMBER_BYTES * (1 + num_top)
        self.max_bytes = _NUMBER_BYTES * len(self._prompt_ids) + a_token * max_tokens

    def take(
        self,
        token_id: int,
        logprob: float,
        top: NDArray[np.float32],
        top_ids: NDArray[np.int32],
    ) -> None:
        """Note one token and the likeliest ones at its position, both ``[num_top]``."""
        if self.is_dropped:
            return
        self._token_ids.append(token_id)
        self._logprobs.append(logprob)
        self._top_ids.frombytes(top_ids.tobytes())
        self._top_logprobs.frombytes(top.tobytes())
        self.keep_until = self._clock() + MAX_AGE_S

    def columns(self) -> dict[str, Any]:
        """Return what was noted as plain data; a position has an entry in each column."""
        count, rows = self.num_top, range(len(self._token_ids))
        return {
            "prompt_token_ids": self._prompt_ids.tolist(),
            "token_ids": self._token_ids.tolist(),
            "logprobs": self._logprobs.tolist(),
            "top_token_ids": [
                self._top_ids[row * count : (row + 1) * count].tolist() for row in rows
            ],
            "top_logprobs": [
                self._top_logprobs[row * count : (row + 1) * count].tolist() for row in rows
            ],
            "num_rows": None if self.rows is None else self.rows.count,
        }


class Captures:
    """The recordings of one engine; the oldest make room. Owned by the event loop's thread.

    Rows have a budget of their own, ``row_bytes``, and stay until they are forgotten or old: an
    answer that finds no room in it goes without, because those before it are nearer their score.
    """

    def __init__(
        self,
        *,
        row_bytes: int = 0,
        vocab_size: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.row_budget = RowBudget(row_bytes)
        self._vocab_size = vocab_size
        self._clock = clock
        self._kept: OrderedDict[str, Recording] = OrderedDict()
        self._rows: dict[str, Rows] = {}

    def open(self, wish: Wish, prompt_ids: Iterable[int], *, max_tokens: int) -> Recording:
        """Return a new recording, kept under the wish's id."""
        self.forget_old()
        self.forget(wish.capture_id)
        recording = Recording(
            prompt_ids,
            num_top=wish.num_top,
            max_tokens=max_tokens,
            rows=self._open_rows(wish, max_tokens),
            clock=self._clock,
        )
        self._kept[wish.capture_id] = recording
        while len(self._kept) > MAX_KEPT or (len(self._kept) > 1 and self.num_bytes > MAX_BYTES):
            self.forget(next(iter(self._kept)))
        return recording

    def pop(self, capture_id: str) -> Recording | None:
        """Return a recording and forget it, but for its rows; None if there is none."""
        self.forget_old()
        recording = self._kept.pop(capture_id, None)
        if recording is not None and recording.rows is not None:
            recording.rows.await_score()
        return recording

    def rows(self, capture_id: str, start: int, stop: int) -> list[memoryview] | None:
        """Return the bytes of some rows of logits, float32; None if they are not there."""
        found = self._rows.get(capture_id)
        return None if found is None else found.part(start, stop)

    def forget(self, capture_id: str) -> None:
        """Forget whatever there is of an answer; what still decodes is noted no longer."""
        recording = self._kept.pop(capture_id, None)
        if recording is not None:
            recording.is_dropped = True
        rows = self._rows.pop(capture_id, None)
        if rows is not None:
            rows.let_go()

    def forget_old(self) -> None:
        """Forget what nobody asked for in time."""
        now = self._clock()
        for capture_id, each in list(self._kept.items()):
            if now > each.keep_until:
                self.forget(capture_id)
        for capture_id, rows in list(self._rows.items()):
            if rows.count is None or now > rows.keep_until:
                rows.let_go()
                del self._rows[capture_id]

    async def tend(self, every_s: float = TEND_EVERY_S) -> None:
        """Forget what is old, for ever, also while no request comes."""
        while True:
            await asyncio.sleep(every_s)
            self.forget_old()

    @property
    def num_bytes(self) -> int:
        """Return what all recordings may come to hold, but for rows."""
        return sum(each.max_bytes for each in self._kept.values())

    def _open_rows(self, wish: Wish, max_tokens: int) -> Rows | None:
        """Return where the rows of an answer go; None if nobody asked or there can be no room."""
        limit = min(wish.num_rows, max_tokens, self.row_budget.total // (4 * self._vocab_size))
        if not limit:
            return None
        rows = self._rows[wish.capture_id] = Rows(
            self.row_budget, limit, self._vocab_size, clock=self._clock
        )
        return rows
