"""What an engine's failures mean to a client: of its connection, and in its replies."""

import logging
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import httpx
import orjson

from gateway.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineDown,
    EngineFault,
    EngineRefused,
    EngineTimeout,
)
from gateway.logs import PRIVATE

logger = logging.getLogger(__name__)

_PASSED_ON = frozenset({400, 413, 429})
# Engines without the code say it in words; the first is vLLM's.
_OVERFLOW = re.compile(r"maximum context length|context (length|size|window) .*exceed", re.I)


def _down(error: Exception) -> ApiError:
    return EngineDown("the engine is gone: it is being restarted, try again")


def _silent(error: Exception) -> ApiError:
    return EngineTimeout(f"the engine took too long: {error}")


def _broken(error: Exception) -> ApiError:
    return EngineFault("the engine broke the HTTP protocol")


TRANSLATIONS: Mapping[type[httpx.TransportError], Callable[[Exception], ApiError]] = (
    MappingProxyType(
        {
            httpx.ConnectError: _down,
            httpx.ConnectTimeout: _down,
            httpx.ReadError: _down,
            httpx.WriteError: _down,
            httpx.CloseError: _down,
            httpx.PoolTimeout: _down,
            httpx.ReadTimeout: _silent,
            httpx.WriteTimeout: _silent,
            httpx.LocalProtocolError: _broken,
            httpx.RemoteProtocolError: _broken,
            httpx.ProxyError: _down,
            httpx.UnsupportedProtocol: _broken,
        }
    )
)
"""What each failure of the connection means to a client; a test holds the table complete."""


def translate(error: httpx.TransportError) -> ApiError:
    """Return what a failed connection means to a client."""
    logger.warning("engine connection: %s: %s", type(error).__name__, error)
    return TRANSLATIONS[type(error)](error)


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Return the error that a client gets for an engine's error status."""
    found = _error_fields(body)
    message = str(found.get("message") or f"the engine answered with status {status}")
    if status == 400 and _OVERFLOW.search(message):
        return ContextLengthExceeded(message)
    if status in _PASSED_ON or status == 422:
        code, param = found.get("code"), found.get("param")
        return EngineRefused(
            message,
            status=400 if status == 422 else status,
            type=str(found.get("type") or "invalid_request_error"),
            code=code if isinstance(code, str) and code else "invalid_value",
            param=None if param is None else str(param),
            retry_after_s=_seconds(headers.get("retry-after")) or (1 if status == 429 else None),
        )
    # Its words may quote the prompt.
    logger.warning("engine status %d", status, extra={PRIVATE: message})
    if status == 503:
        return EngineDown(
            "the engine takes no requests now: try again",
            retry_after_s=_seconds(headers.get("retry-after")),
        )
    return EngineFault(f"the engine failed with status {status}", engine_status=status)


def _error_fields(body: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(found, dict):
        return {}
    inner = found.get("error", found)  # some engines send the inner object alone
    return inner if isinstance(inner, dict) else {"message": inner}


def _seconds(text: str | None) -> float | None:
    is_number = text is not None and text.isascii() and text.isdecimal() and len(text) < 8
    return float(text) if text and is_number else None
