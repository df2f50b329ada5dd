"""One answer on its way from the step thread to the event loop."""

import asyncio
from collections.abc import AsyncIterator

from gateway.engine.sequence import Delta, Sequence
from gateway.errors import ApiError


class Generation:
    """The deltas of one sequence; everything here runs on the event loop's thread."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._arrived: list[Delta] = []
        self._error: ApiError | None = None
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        return self

    async def __anext__(self) -> list[Delta]:
        """Return the deltas that arrived since the last call, at least one.

        Raises:
            ApiError: the step failed.
            StopAsyncIteration: the answer is complete, or was cancelled.
        """
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        arrived, self._arrived = self._arrived, []
        return arrived

    @property
    def num_prompt_tokens(self) -> int:
        """Return the length of the prompt, exactly as the model read it."""
        return len(self._sequence.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        """Return how many tokens were generated, the one that ended the answer included."""
        return len(self._sequence.output_ids)

    def put(self, piece: Delta | ApiError) -> None:
        """Take over what a step produced."""
        if isinstance(piece, Delta):
            self._arrived.append(piece)
            self._is_over = self._is_over or piece.finish_reason is not None
        else:
            self._error = piece
        self._wake()

    def cancel(self) -> None:
        """Stop decoding at the next step and end the iteration; harmless at any time."""
        self._sequence.is_cancelled = True
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
