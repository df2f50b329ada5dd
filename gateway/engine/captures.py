"""What was noted of answers while they were generated, kept until it is asked for, once."""

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from gateway.capture import Wish
from gateway.engine.sequence import TokenLogprob

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_top = num_top
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

    def take(self, entry: TokenLogprob) -> None:
        """Note one token and the likeliest ones at its position."""
        if self.is_dropped:
            return
        self._token_ids.append(entry.token_id)
        self._logprobs.append(entry.logprob)
        self._top_ids.extend(token_id for token_id, _ in entry.top)
        self._top_logprobs.extend(logprob for _, logprob in entry.top)
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
        }


class Captures:
    """The recordings of one engine; the oldest make room. Owned by the event loop's thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, Recording] = OrderedDict()

    def open(self, wish: Wish, prompt_ids: Iterable[int], *, max_tokens: int) -> Recording:
        """Return a new recording, kept under the wish's id."""
        recording = Recording(
            prompt_ids, num_top=wish.num_top, max_tokens=max_tokens, clock=self._clock
        )
        self.forget_old()
        self._kept[wish.capture_id] = recording
        self._kept.move_to_end(wish.capture_id)
        while len(self._kept) > MAX_KEPT or (len(self._kept) > 1 and self.num_bytes > MAX_BYTES):
            self._drop(next(iter(self._kept)))
        return recording

    def pop(self, capture_id: str) -> Recording | None:
        """Return a recording and forget it; None if there is none."""
        self.forget_old()
        return self._kept.pop(capture_id, None)

    def forget_old(self) -> None:
        """Forget what nobody asked for in time."""
        now = self._clock()
        for capture_id, each in list(self._kept.items()):
            if now > each.keep_until:
                self._drop(capture_id)

    async def tend(self, every_s: float = TEND_EVERY_S) -> None:
        """Forget what is old, for ever, also while no request comes."""
        while True:
            await asyncio.sleep(every_s)
            self.forget_old()

    @property
    def num_bytes(self) -> int:
        """Return what all recordings may come to hold."""
        return sum(each.max_bytes for each in self._kept.values())

    def _drop(self, capture_id: str) -> None:
        # What is still being generated is noted no longer.
        self._kept.pop(capture_id).is_dropped = True
