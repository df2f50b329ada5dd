"""The reply of the scoring route: columns of numbers, and whose they are."""

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.engine.reply import cancelled_with_client, send_error, send_reply
from gateway.engine.scoring import Scoring
from gateway.errors import ApiError


class ScoreReply:
    """Waits for the scores; a client that leaves stops the scoring."""

    def __init__(self, scoring: Scoring, head: dict[str, Any]) -> None:
        self._scoring = scoring
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with cancelled_with_client(self._scoring, receive):
            try:
                scores = await self._scoring.result()
            except ApiError as error:
                await send_error(error, send)
                return
            if scores is None:
                return  # cancelled: nobody reads a reply
            body = orjson.dumps({**self._head, "scores": scores})
            await send_reply(send, 200, [(b"content-type", b"application/json")], body)
