"""The wire of an engine's scoring route: a text, and candidates for some of its positions.

With the whole distributions that another engine keeps, it also tells the divergence from those.
"""

from typing import Annotated, Any

from pydantic import Field

from gateway.capture import CAPTURE_ID
from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.wire import Items, TokenId, Wire, validated

MAX_CANDIDATES = 256
"""Of one position."""

LOOPBACK = "127.0.0.1"
"""The only place from which an engine fetches distributions."""
ROWS_GONE = "rows_gone"
"""The code of the error where they are not there any more."""

Candidates = Annotated[Items[TokenId], Field(min_length=1, max_length=MAX_CANDIDATES)]


class RowsAt(Wire):
    """Where the distributions of an answer are: kept by an engine on this machine."""

    port: int = Field(ge=1, le=65535)
    capture_id: str = Field(pattern=CAPTURE_ID)
    first: int = Field(default=0, ge=0)
    """The one of the first position that is scored."""


class ScoreRequest(Wire):
    """Body of ``POST /engine/score``.

    Position ``start + i`` is scored for ``candidates[i]``, given all tokens before it; the first
    token has nothing before it, so ``start`` is 1 at least.
    """

    model: str = Field(min_length=1)
    token_ids: Items[TokenId] = Field(min_length=1)
    start: int = Field(ge=1)
    candidates: Items[Candidates] = Field(min_length=1)
    rows: RowsAt | None = None


def parse_score(fields: dict[str, Any], *, max_model_len: int, vocab_size: int) -> ScoreRequest:
    """Validate the fields of a scoring request.

    Raises:
        InvalidRequest: names the wrong field in ``param``.
        ContextLengthExceeded: the text is longer than the model's context.
    """
    request = validated(ScoreRequest, fields)
    read = request.start + len(request.candidates) - 1
    if read > len(request.token_ids):
        raise InvalidRequest(
            f"'candidates' reach to position {read}, but position {len(request.token_ids)}, right "
            "behind the last token, is the last that can be scored: send fewer, or more tokens",
            param="candidates",
        )
    if read > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens, and {read} are to be "
            "read: send a shorter text",
            param="token_ids",
        )
    largest = {
        "token_ids": max(request.token_ids),
        "candidates": max(map(max, request.candidates)),
    }
    for name, token_id in largest.items():
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"{name!r} holds the token id {token_id}: the vocabulary ends at {vocab_size - 1}",
                param=name,
            )
    return request
