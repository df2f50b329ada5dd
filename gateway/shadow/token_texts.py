"""The text of each token of an answer, as an engine's own tokenizer writes it."""

import asyncio
from collections.abc import Sequence

from gateway.upstream import EngineClient

_AT_ONCE = 16
_BROKEN = "\ufffd"


async def token_texts(client: EngineClient, token_ids: Sequence[int], request_id: str) -> list[str]:
    """Return the text that each token adds; one that ends amid a character adds none yet.

    Raises:
        ApiError: the engine failed, or does not write the text of tokens.
    """
    beginnings = [""]
    for first in range(0, len(token_ids), _AT_ONCE):
        # The whole beginning each time: of a token alone some tokenizers drop the space.
        ends = range(first + 1, min(first + _AT_ONCE, len(token_ids)) + 1)
        asking = (client.detokenize(token_ids[:end], request_id) for end in ends)
        beginnings += await asyncio.gather(*asking)
    return _pieces(beginnings)


def _pieces(beginnings: Sequence[str]) -> list[str]:
    pieces: list[str] = []
    num_shown = 0
    for place, text in enumerate(beginnings[1:], 1):
        is_last = place == len(beginnings) - 1
        whole = text if is_last else text.rstrip(_BROKEN)
        pieces.append(whole[num_shown:])
        num_shown = max(num_shown, len(whole))
    return pieces
