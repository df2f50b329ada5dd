"""Reads the JSON body of a request within its limits."""

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, InvalidRequest
from gateway.parts import check_parts
from gateway.protocol import parse_object
from gateway.settings import Settings

LONG_BYTES = 256 * 1024
"""Bodies of more are worked on step by step, and others run between."""


async def read_object(request: Request, settings: Settings) -> dict[str, Any]:
    """Return the body as a JSON object.

    Raises:
        InvalidRequest: another content type, too long, too many parts, too slow, or no JSON object.
        ClientGone: the client left before the body was complete.
    """
    _require_json(request)
    max_bytes = settings.max_body_bytes
    if int(_digits(request.headers.get("content-length"))) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_s) as timer:
            raw = await _read(request, max_bytes)
    except ClientDisconnect:
        raise ClientGone("the client left before its request was complete") from None
    except TimeoutError:
        if not timer.expired():
            raise
        raise BodyTimeout(
            f"the body was not complete after {settings.body_timeout_s:g} s: send it faster"
        ) from None
    check_parts(raw, settings.max_body_parts)
    await let_others(request)
    return parse_object(raw)


async def let_others(request: Request) -> None:
    """Let other requests run between two steps of a request with a long body."""
    told = request.headers.get("content-length")
    if told is None or int(_digits(told)) > LONG_BYTES:
        await asyncio.sleep(0)


async def _read(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def _require_json(request: Request) -> None:
    # Browsers send text/plain across origins unasked; JSON they must ask for first.
    found = request.headers.get("content-type", "")
    kind = found.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            f"the header 'content-type' must be 'application/json', not {found[:100]!r}"
        )


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is longer than {max_bytes} bytes (setting 'max_body_bytes')")


def _digits(text: str | None) -> str:
    return text if text and text.isdecimal() and len(text) < 20 else "0"
