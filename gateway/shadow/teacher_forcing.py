"""A served reply under the reference: the text that it reads, and the divergence on each token."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from gateway.errors import EngineFault
from gateway.shadow.divergence import Divergence, NotANumber, candidates, compare, joined
from gateway.shadow.leisure import leisure
from gateway.shadow.records import Captured, Scorer

_L = TypeVar("_L")
_R = TypeVar("_R")

_COMPARED_AT_ONCE = 16


class Text(NamedTuple):
    """What a scorer is asked: tokens, where the answer begins, and candidates from there on."""

    token_ids: tuple[int, ...]
    start: int
    candidates: list[list[int]]


def text_of(captured: Captured) -> Text:
    """Return the text of a reply with the tokens that are compared at each position."""
    answer = (position.token_id for position in captured.positions)
    return Text(
        token_ids=(*captured.prompt_token_ids, *answer),
        start=len(captured.prompt_token_ids),
        candidates=[list(candidates(position)) for position in captured.positions],
    )


async def divergence_of(captured: Captured, scorer: Scorer) -> Divergence:
    """Return how far a reply is from the reference, token by token.

    Raises:
        ApiError: the reference refused, failed, is gone or told no numbers.
    """
    scored = await scorer.score(*text_of(captured))
    try:
        return await piecewise(captured.positions, scored, compare)
    except NotANumber as error:
        raise EngineFault(str(error)) from None


async def piecewise(
    left: Sequence[_L],
    right: Sequence[_R],
    part: Callable[[Sequence[_L], Sequence[_R]], Divergence],
) -> Divergence:
    """Compare a few positions at a time: requests share this thread.

    Raises:
        EngineFault: there are not as many on both sides.
    """
    if len(left) != len(right):
        raise EngineFault("the reference scored something else than was asked")
    parts: list[Divergence] = []
    for start in range(0, len(left), _COMPARED_AT_ONCE):
        stop = start + _COMPARED_AT_ONCE
        await leisure()
        parts.append(part(left[start:stop], right[start:stop]))
    return joined(parts)
