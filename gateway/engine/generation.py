"""Answers on their way from the step thread to the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items

from gateway.engine.sequence import Delta, Sequence
from gateway.errors import ApiError


class Generation:
    """The deltas of one sequence; everything here runs on the event loop's thread."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.error: ApiError | None = None
        self.is_over = False
        self.on_news: Callable[[], None] | None = None
        """Called whenever something arrived or the answer ended."""
        self._arrived: list[Delta] = []
        self._alone: Choices | None = None

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        return self

    async def __anext__(self) -> list[Delta]:
        """Return the deltas that arrived since the last call, at least one.

        For a sequence that is alone; of several, :class:`Choices` tells the news.

        Raises:
            ApiError: the step failed.
            StopAsyncIteration: the answer is complete, or was cancelled.
        """
        if self._alone is None:
            self._alone = Choices([self])
        return [delta for _, delta in await anext(self._alone)]

    @property
    def num_prompt_tokens(self) -> int:
        """Return the length of the prompt, exactly as the model read it."""
        return len(self.sequence.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        """Return how many tokens were generated, the one that ended the answer included."""
        return len(self.sequence.output_ids)

    def take(self) -> list[Delta]:
        """Return the deltas that arrived since the last call."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def put(self, piece: Delta | ApiError) -> None:
        """Take over what a step produced."""
        if isinstance(piece, Delta):
            self._arrived.append(piece)
            self.is_over = self.is_over or piece.finish_reason is not None
        else:
            self.error = piece
        self._tell()

    def cancel(self) -> None:
        """Stop decoding at the next step and end the iteration; harmless at any time."""
        self.sequence.is_cancelled = True
        self.is_over = True
        self._tell()

    def _tell(self) -> None:
        if self.on_news is not None:
            self.on_news()


class Choices:
    """The answers to one request, each a sequence of its own.

    Those to the same prompt follow one another: ``num_per_prompt`` of each.
    """

    def __init__(self, generations: Items[Generation], *, num_per_prompt: int = 1) -> None:
        self.generations = generations
        self._num_per_prompt = num_per_prompt
        self._waiter: asyncio.Future[None] | None = None
        for generation in generations:
            generation.on_news = self._wake

    def __aiter__(self) -> AsyncIterator[list[tuple[int, Delta]]]:
        return self

    async def __anext__(self) -> list[tuple[int, Delta]]:
        """Return the deltas that arrived since the last call with their choice, at least one.

        Raises:
            ApiError: a step failed.
            StopAsyncIteration: all answers are complete, or were cancelled.
        """
        while True:
            arrived = [
                (index, delta)
                for index, generation in enumerate(self.generations)
                for delta in generation.take()
            ]
            if arrived:
                return arrived
            for generation in self.generations:
                if generation.error is not None:
                    raise generation.error
            if all(generation.is_over for generation in self.generations):
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def __len__(self) -> int:
        return len(self.generations)

    def prompt_of(self, index: int) -> int:
        """Return which prompt a choice answers."""
        return index // self._num_per_prompt

    @property
    def num_prompt_tokens(self) -> int:
        """Return the length of all prompts, each counted once."""
        asked = self.generations[:: self._num_per_prompt]
        return sum(generation.num_prompt_tokens for generation in asked)

    @property
    def num_output_tokens(self) -> int:
        """Return how many tokens were generated, those that ended the answers included."""
        return sum(generation.num_output_tokens for generation in self.generations)

    def cancel(self) -> None:
        """Stop decoding all answers at the next step; harmless at any time."""
        for generation in self.generations:
            generation.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
