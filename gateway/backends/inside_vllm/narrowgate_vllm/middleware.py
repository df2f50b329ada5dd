"""``GET /engine/info`` on vLLM's own server, answered by its workers."""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

PATH = "/engine/info"
ARTIFACT = "NARROWGATE_VLLM_ARTIFACT"
"""In the environment of an engine whose gateway is elsewhere: what it must know, as JSON."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class DescribesItself:
    """An ASGI layer that answers one path and passes all others on."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        workers = await state.engine_client.collective_rpc("narrowgate_describe")
        args = state.args
        name = (args.served_model_name or [args.model])[0]
        config = state.engine_client.model_config
        cache = {layer: held for worker in workers for layer, held in worker["kv_layers"].items()}
        body = {
            **workers[0],
            "kv_layers": [cache[layer] for layer in sorted(cache, key=int)],
            "served_model_name": name,
            "max_model_len": config.max_model_len,
            "weights_bytes": sum(worker["weights_bytes"] for worker in workers),
        }
        told = json.loads(os.environ.get(ARTIFACT, "{}"))
        if num_weights := told.pop("num_weights", None):
            body["weight_bits"] = 8 * body["weights_bytes"] / num_weights
        content = json.dumps(body | told).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})
