"""The fake engine's routes beside generation; its tokens are the bytes of a text."""

import json
from typing import Any

from gateway.errors import InvalidRequest
from gateway.tokens import parse_detokenize, parse_tokenize

ROUTES = frozenset({"/tokenize", "/detokenize", "/v1/embeddings", "/v1/responses"})
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


def reply_to(path: str, fields: dict[str, Any], max_model_len: int) -> dict[str, Any]:
    """Return the plain reply of one of the routes."""
    if path == "/tokenize":
        return _tokenize(fields, max_model_len)
    if path == "/detokenize":
        tokens = parse_detokenize(fields).tokens
        if max(tokens, default=0) > 255:
            raise InvalidRequest("'tokens' holds more than a byte", param="tokens")
        return {"prompt": bytes(tokens).decode("utf-8", "replace")}
    if path == "/v1/embeddings":
        entry = {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}
        usage = {"prompt_tokens": 4, "total_tokens": 4}
        return {"object": "list", "data": [entry], "model": fields["model"], "usage": usage}
    return _response(fields, "completed") | {"usage": USAGE}


def response_events(fields: dict[str, Any]) -> list[bytes]:
    """Return the events of a streamed response."""
    text = 'it speaks of "response.completed" and goes on'
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(fields, "in_progress")},
        {"type": "response.output_text.delta", "delta": text},
        {
            "type": "response.completed",
            "response": _response(fields, "completed") | {"usage": USAGE},
        },
    ]
    numbered = [event | {"sequence_number": index} for index, event in enumerate(events)]
    return [f"event: {item['type']}\ndata: {json.dumps(item)}\n\n".encode() for item in numbered]


def _tokenize(fields: dict[str, Any], max_model_len: int) -> dict[str, Any]:
    request = parse_tokenize(fields)
    text = request.prompt or "".join(str(turn.content) for turn in request.messages or ())
    tokens = list(text.encode())
    strings = [chr(token) for token in tokens] if request.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    }


def _response(fields: dict[str, Any], status: str) -> dict[str, Any]:
    return {"id": "resp-1", "object": "response", "status": status, "seen": sorted(fields)}
