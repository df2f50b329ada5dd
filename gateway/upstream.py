"""The client of an engine: the only module that talks HTTP to engines."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx
import orjson

from gateway.engine_description import read_card, read_description, read_names
from gateway.engine_failures import refusal, translate
from gateway.errors import EngineDown, EngineFault, InvalidRequest, NotSupportedByEngine
from gateway.protocol import EngineInfo
from gateway.record import engine_call
from gateway.transport import READ, EngineTransport, Read

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 2.0
_POLL_FIRST_S = 0.02
_POLL_LAST_S = 0.25
_AFTER_NEWS_S = 0.02
_SHOWN_CHARS = 200
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""A plain reply longer than this is a defect of the engine."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Every engine has these paths, and those for operators; it may lack others."""
_NO_SUCH_PATH = frozenset({404, 405, 501})
_INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "/v1/responses": "use /v1/chat/completions",
        "/v1/embeddings": "ask a model whose engine makes embeddings",
        "/tokenize": "use the model's tokenizer where you are",
        "/detokenize": "use the model's tokenizer where you are",
        "/engine/score": "score with an engine that can",
    }
)


@dataclass(frozen=True, slots=True)
class EngineReply:
    """An engine's accepted reply, its body still unread."""

    content_type: str
    read_raw: Read

    async def read(self) -> bytes:
        """Return the bytes of the body that have arrived, waiting for some; empty at the end.

        Raises:
            ApiError: the connection broke or the engine fell silent.
        """
        try:
            return await self.read_raw()
        except httpx.TransportError as error:
            raise translate(error) from error

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            ApiError: the connection broke, or the body is absurdly long.
        """
        parts: list[bytes] = []
        num_bytes = 0
        while chunk := await self.read():
            num_bytes += len(chunk)
            if num_bytes > MAX_REPLY_BYTES:
                raise EngineFault(f"the engine's reply is longer than {MAX_REPLY_BYTES} bytes")
            parts.append(chunk)
        return b"".join(parts)


class EngineClient:
    """Talks to one engine; ``read_timeout_s`` bounds its silence, not the length of a reply."""

    def __init__(
        self,
        base_url: str,
        *,
        served_name: str,
        read_timeout_s: float,
        api_key: str | None = None,
    ) -> None:
        self.served_name = served_name
        self.base_url = base_url
        # Compressed frames could not be passed on as they are.
        self._headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        timeout = httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S)
        self._limits = {"timeout": timeout.as_dict()}
        self._urls: dict[str, httpx.URL] = {}  # parsed once
        self._transport = EngineTransport()
        self._client = httpx.AsyncClient(
            base_url=base_url,
            transport=self._transport,
            trust_env=False,
            timeout=timeout,
            headers=self._headers,
        )

    @asynccontextmanager
    async def generate(
        self,
        path: str,
        fields: Mapping[str, Any],
        request_id: str,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> AsyncIterator[EngineReply]:
        """Send a request for generation to ``path``; leaving early makes the engine stop.

        ``headers`` are sent beside those that every request has.

        Raises:
            InvalidRequest: the fields are nested too deep to be written as JSON.
            ApiError: the engine refused the request, failed or is gone.
        """
        with engine_call(self.served_name, self.base_url) as trace_headers:
            request = httpx.Request(
                "POST",
                self._url(path),
                content=_encode(self._engine_fields(path, fields)),
                headers={**self._headers, "x-request-id": request_id, **trace_headers, **headers},
                extensions=self._limits,
            )
            async with self._exchange(request) as (response, reply):
                if response.status_code != 200:
                    if path not in _GENERATING and response.status_code in _NO_SUCH_PATH:
                        raise self._lacks(path)
                    raise refusal(response.status_code, response.headers, await reply.body())
                yield reply

    async def complete(self, fields: Mapping[str, Any], request_id: str) -> Any:
        """Return the parsed reply to a plain completion request.

        Raises:
            ApiError: the engine refused the request, failed or is gone.
        """
        return await self._ask("/v1/completions", fields, request_id)

    async def score(self, fields: Mapping[str, Any], request_id: str) -> Any:
        """Return the parsed scores of a text; leaving early makes the engine stop.

        Raises:
            ApiError: the engine refused the request, failed, cannot score or is gone.
        """
        return await self._ask("/engine/score", fields, request_id)

    async def detokenize(self, token_ids: Sequence[int], request_id: str) -> str:
        """Return the text of tokens.

        Raises:
            ApiError: the engine refused the request, failed, cannot do it or is gone.
        """
        reply = await self._ask("/detokenize", {"tokens": list(token_ids)}, request_id)
        text = reply.get("prompt") if isinstance(reply, dict) else None
        if not isinstance(text, str):
            raise EngineFault("the engine's text of tokens has a wrong form")
        return text

    async def take_capture(self, capture_id: str) -> bytes | None:
        """Return what the engine noted of an answer, which it then forgets; None if nothing.

        Raises:
            ApiError: the engine does not answer, or with an error.
        """
        self._require_open()
        url = f"{self.base_url}/engine/capture/{capture_id}"
        request = httpx.Request("GET", url, headers=self._headers, extensions=self._limits)
        async with self._exchange(request) as (response, reply):
            if response.status_code == 404:
                return None
            body = await reply.body()
            if response.status_code != 200:
                raise refusal(response.status_code, response.headers, body)
            return body

    async def read_rows(
        self, capture_id: str, start: int, stop: int, *, num_bytes: int
    ) -> bytes | None:
        """Return some whole distributions that the engine keeps of an answer, as float32 logits.

        None: they are not there, or are not ``num_bytes``; no more than those are read.

        Raises:
            ApiError: the engine does not answer, or with an error.
        """
        self._require_open()
        path = f"/engine/capture/{capture_id}/rows?start={start}&stop={stop}"
        found = bytearray()
        try:
            async with self._client.stream("GET", path) as reply:
                if reply.status_code == 404:
                    return None
                if reply.status_code != 200:
                    raise refusal(reply.status_code, reply.headers, b"")
                async for chunk in reply.aiter_raw():
                    found += chunk
                    if len(found) > num_bytes:
                        return None
        except httpx.TransportError as error:
            raise translate(error) from error
        return bytes(found) if len(found) == num_bytes else None

    async def forget_capture(self, capture_id: str) -> None:
        """Have the engine forget what it keeps of an answer.

        Raises:
            ApiError: the engine does not answer.
        """
        self._require_open()
        try:
            await self._client.delete(f"/engine/capture/{capture_id}")
        except httpx.TransportError as error:
            raise translate(error) from error

    async def is_healthy(self, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """Return whether the engine answers in time that it is well."""
        return await self.complaint(timeout_s) is None

    async def complaint(self, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """Return what shows that the engine is not well, in words behind its address, or None."""
        try:
            reply = await self._client.get("/health", timeout=min(timeout_s, PROBE_TIMEOUT_S))
        except httpx.ConnectError:
            return "takes no connection"
        except httpx.TransportError as error:
            return f"does not answer ({type(error).__name__})"
        return None if reply.status_code == 200 else f"answers /health with {reply.status_code}"

    async def read_metrics(self, timeout_s: float = PROBE_TIMEOUT_S) -> bytes:
        """Return the engine's metrics in Prometheus' text form; empty if it does not answer."""
        try:
            reply = await self._client.get("/metrics", timeout=min(timeout_s, PROBE_TIMEOUT_S))
        except httpx.TransportError:
            return b""
        return reply.content if reply.status_code == 200 else b""

    async def wait_healthy(self, news: asyncio.Event | None = None) -> None:
        """Wait until the engine answers that it is well; it is asked again soon after ``news``."""
        news = news or asyncio.Event()
        pause_s = _POLL_FIRST_S
        while not await self.is_healthy():
            try:
                async with asyncio.timeout(pause_s):
                    await news.wait()
            except TimeoutError:
                pause_s = min(_POLL_LAST_S, pause_s * 1.5)
            else:
                news.clear()
                pause_s = _POLL_FIRST_S
                await asyncio.sleep(_AFTER_NEWS_S)

    async def info(self) -> EngineInfo:
        """Return what the engine says of itself; one that is not ours says little.

        Raises:
            ApiError: it does not answer, or not with a description.
        """
        try:
            reply = await self._client.get("/engine/info")
            if reply.status_code == 404:
                reply = await self._client.get("/v1/models")
                return read_card(reply.content, self.served_name, self.base_url)
        except httpx.TransportError as error:
            raise translate(error) from error
        if reply.status_code != 200:
            raise EngineFault(
                f"{self.base_url}/engine/info answers {reply.status_code}: "
                f"{reply.text[:_SHOWN_CHARS]!r}: see that engine's log, or correct 'urls'"
            )
        return read_description(reply.content, self.served_name, self.base_url)

    async def served_names(self) -> list[str]:
        """Return the names under which the engine serves.

        Raises:
            EngineFault: it does not list them.
            ApiError: it does not answer.
        """
        try:
            reply = await self._client.get("/v1/models")
        except httpx.TransportError as error:
            raise translate(error) from error
        return read_names(reply.content, self.base_url)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def _exchange(
        self, request: httpx.Request
    ) -> AsyncIterator[tuple[httpx.Response, EngineReply]]:
        """Send a request past httpx's client: its redirects and hooks cost as much as the rest."""
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            raise translate(error) from error
        try:
            content_type = response.headers.get("content-type", "")
            yield response, EngineReply(content_type, response.extensions[READ])
        finally:
            await response.aclose()

    def _require_open(self) -> None:
        """Refuse what comes after :meth:`aclose`: the engine may be gone with its client."""
        if self._client.is_closed:
            raise EngineDown("the engine is gone: nothing is asked of it any more")

    async def _ask(self, path: str, fields: Mapping[str, Any], request_id: str) -> Any:
        async with self.generate(path, fields, request_id) as reply:
            body = await reply.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise EngineFault("the engine's reply is no JSON") from None

    def _url(self, path: str) -> httpx.URL:
        found = self._urls.get(path)
        if found is None:
            found = self._urls[path] = httpx.URL(self.base_url + path)
        return found

    def _lacks(self, path: str) -> NotSupportedByEngine:
        return NotSupportedByEngine(
            f"the engine of {self.served_name!r} has no {path}: {_INSTEAD[path]}", param="model"
        )

    def _engine_fields(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        changed = {**fields, "model": self.served_name}
        if fields.get("stream") and path in _GENERATING:
            # Exact token counts need the usage report; `streaming` hides it from who did not ask.
            options = fields.get("stream_options") or {}
            changed["stream_options"] = {**options, "include_usage": True}
        return changed


def _encode(fields: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        # All else that was parsed can be written; only the limits of depth differ.
        raise InvalidRequest("the body is nested too deep: use fewer levels") from None
