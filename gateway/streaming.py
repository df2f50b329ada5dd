"""Streams from an engine to a client: events in, events out, closed however either side leaves."""

import asyncio
import re
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.deadline import Deadline
from gateway.envelope import sse_event
from gateway.errors import ApiError, ClientGone, EngineDown, EngineFault, EngineTimeout
from gateway.protocol import Usage
from gateway.trace import RequestTrace
from gateway.upstream import EngineReply

_T = TypeVar("_T")

EVENT_STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
MAX_FRAME_BYTES = 4 * 1024 * 1024

# Atomic groups: CRLF is one line end and must never be split into two.
_FRAME_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_FIELD_STARTS = (b"data:", b":", b"event:", b"id:", b"retry:")
# Quotes inside a JSON string are escaped, so these match keys only.
_TEXT = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content)"\s*:\s*"[^"]|"tool_calls"\s*:\s*\[\s*\{'
)
_CONTENT, _COMPLETED = b'"content":"', b'"text":"'
_CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\{[^{}\[\]]*?"index"\s*:\s*(\d{1,6})')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([^"]*)"')
_DONE = re.compile(rb"data:\s*\[DONE\]")
_ERROR = re.compile(rb'data:\s*\{\s*"error"\s*:')
_USAGE = re.compile(rb'"usage"\s*:')
_NULL_USAGE = b',"usage":null'
_CHUNK_END = b"}\n\n"
_ANY_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,')


def _has_text(frame: bytes) -> bool:
    # The usual spelling is looked for first: a search for plain bytes costs a tenth.
    for key in (_CONTENT, _COMPLETED):
        start = frame.find(key)
        if start >= 0 and frame[start + len(key)] != ord('"'):
            return True
    return _TEXT.search(frame) is not None


class FrameSplitter:
    """Cuts a byte stream into server-sent events, blank line included, wherever chunks end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that are complete now.

        Raises:
            EngineFault: one event grows beyond all reason.
        """
        is_one_event = chunk.find(b"\n\n") == len(chunk) - 2 >= 0 and b"\r" not in chunk
        if is_one_event and not self._rest:
            return [chunk]  # the usual case
        buffer = self._rest + chunk if self._rest else chunk
        scan_from = max(0, len(self._rest) - 3)  # the longest end of an event has four bytes
        frames: list[bytes] = []
        start = 0
        for end in _FRAME_END.finditer(buffer, scan_from):
            stop = end.end()
            if stop == len(buffer) and buffer.endswith(b"\r"):
                break  # the other half of a CRLF may follow
            frames.append(buffer[start:stop])
            start = stop
        self._rest = buffer[start:]
        if len(self._rest) > MAX_FRAME_BYTES:
            raise EngineFault(f"one event of the engine is longer than {MAX_FRAME_BYTES} bytes")
        return frames

    def flush(self) -> bytes:
        """Return what is left after the last complete event."""
        rest, self._rest = self._rest, b""
        return rest


class Relay(Protocol):
    """What stands between an engine's stream and a client."""

    @property
    def is_complete(self) -> bool:
        """Return whether the client was sent the end mark."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes for the client."""

    def finish(self) -> bytes:
        """Return the last bytes for the client after the engine has closed its stream."""


class EventRelay:
    """Passes an engine's events on as bytes and reads only what is counted.

    The engine was asked for a usage report; a client that did not ask never sees a trace of it.
    Of several choices each has its own times between tokens, and all of them must end.
    """

    def __init__(self, trace: RequestTrace, *, includes_usage: bool, num_choices: int = 1) -> None:
        self._trace = trace
        self._includes_usage = includes_usage
        self._num_choices = num_choices
        self._num_finished = 0
        self._splitter = FrameSplitter()
        self._finish_reason: str | None = None
        self._has_failed = False
        self.is_complete = False
        """Whether the client was sent the end mark."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes for the client.

        Raises:
            EngineFault: the chunk is no stream of events.
        """
        frames = self._splitter.feed(chunk)
        if len(frames) == 1:
            return self._relay(frames[0])
        return b"".join([self._relay(frame) for frame in frames])

    def finish(self) -> bytes:
        """Return the last bytes for the client after the engine has closed its stream.

        Raises:
            ApiError: the stream ended before the answer did.
        """
        tail = b""
        rest = self._splitter.flush()
        if rest.endswith((b"\n", b"\r")) or rest == DONE.strip():
            tail = self._relay(rest.rstrip() + b"\n\n")
        if self.is_complete:
            return tail
        if self._num_finished < self._num_choices and not self._has_failed:
            raise EngineDown("the engine's stream ended before the answer did")
        return tail + self._end(DONE)

    def _relay(self, frame: bytes) -> bytes:
        if self.is_complete:
            return b""
        if not frame.startswith(_FIELD_STARTS):
            if frame.isspace():
                return b""
            raise EngineFault("the engine sent something else than server-sent events")
        if _has_text(frame):
            self._trace.see_text(self._choice(frame) if self._num_choices > 1 else 0)
        is_usual = self._num_choices == 1 and b'"finish_reason":null' in frame
        if not is_usual and (found := _FINISH.findall(frame)):
            self._finish_reason = found[-1].decode(errors="replace")
            self._num_finished += len(found)
        # A text may be just that word; a key is followed by a colon.
        if b'"usage"' in frame and _USAGE.search(frame):
            return self._account(frame)
        if frame.startswith(b"data:"):
            if _DONE.match(frame):
                return self._end(frame)
            if _ERROR.match(frame):
                self._has_failed = True
                self._trace.fail(EngineFault("the engine reported an error inside its stream"))
            elif self._includes_usage and frame.endswith(_CHUNK_END):
                return frame[: -len(_CHUNK_END)] + _NULL_USAGE + _CHUNK_END
        return frame

    def _account(self, frame: bytes) -> bytes:
        bare = frame.replace(_NULL_USAGE, b"", 1)
        if len(bare) == len(frame):
            bare = _ANY_NULL_USAGE.sub(b"", frame, count=1)
        if len(bare) < len(frame):
            return frame if self._includes_usage else bare
        try:
            event = orjson.loads(frame[len(b"data:") :])
            usage, choices = event["usage"], event.get("choices")
            self._trace.see_usage(Usage.model_validate(usage))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError):
            raise EngineFault("the engine sent a usage report that cannot be read") from None
        return frame if self._includes_usage or choices else b""

    @staticmethod
    def _choice(frame: bytes) -> int:
        """Return whose text an event carries; engines send one choice an event."""
        found = _CHOICE.search(frame)
        return int(found[1]) if found else 0

    def _end(self, frame: bytes) -> bytes:
        self.is_complete = True
        if not self._has_failed:
            self._trace.succeed(self._finish_reason or "")
        return frame


class StreamedAnswer(Protocol):
    """An engine's stream that has begun."""

    @property
    def reply(self) -> EngineReply:
        """Return what the rest is read from."""

    @property
    def head(self) -> asyncio.Future[bytes]:
        """Return the first bytes, which may still be on their way."""

    def praise(self) -> None:
        """Note that the engine answered to the end."""

    def blame(self) -> None:
        """Note that the engine broke off."""


class OwnedStreamingResponse(Response):
    """A stream that closes what it reads from, however the client leaves.

    While the engine is silent the client gets a comment every ``keep_alive_s`` seconds, so that
    nothing on the way takes the connection for dead.
    """

    def __init__(
        self,
        answer: StreamedAnswer,
        relay: Relay,
        *,
        trace: RequestTrace,
        owner: AsyncExitStack,
        headers: Mapping[str, str],
        keep_alive_s: float,
        deadline: Deadline,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**headers, "content-type": EVENT_STREAM, "cache-control": "no-cache"})
        self._answer = answer
        self._relay = relay
        self._trace = trace
        self._owner = owner
        self._deadline = deadline
        self._keep_alive_s = keep_alive_s
        self._num_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._pump(send))
        except ClientGone:
            if not self._relay.is_complete:
                self._trace.abandon()
        finally:
            await self._owner.aclose()

    async def _pump(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        keeping_alive = asyncio.ensure_future(self._keep_alive(send))
        try:
            tail = await self._deadline.until_end(self._relay_all(send))
        except ApiError as error:
            tail = self._broken_off(error)
        finally:
            keeping_alive.cancel()
        await send({"type": "http.response.body", "body": tail, "more_body": False})

    async def _relay_all(self, send: Send) -> bytes:
        chunk = await self._answer.head
        while chunk:
            if data := self._relay.feed(chunk):
                self._num_sent += 1
                await send({"type": "http.response.body", "body": data, "more_body": True})
            chunk = await self._answer.reply.read()
        tail = self._relay.finish()
        self._answer.praise()
        return tail

    async def _keep_alive(self, send: Send) -> None:
        num_sent = -1
        while True:
            if num_sent == self._num_sent:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
            num_sent = self._num_sent
            await asyncio.sleep(self._keep_alive_s)

    def _broken_off(self, error: ApiError) -> bytes:
        if self._relay.is_complete:
            return b""
        if isinstance(error, (EngineDown, EngineFault, EngineTimeout)):
            self._answer.blame()
        self._trace.fail(error)
        # Clients take the plain end of a stream for success, so say it.
        return sse_event(error) + DONE


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what ``work`` returns, unless the client leaves before: then cancel it.

    Raises:
        ClientGone: the client left first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client left")
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def read_plain(body: bytes, trace: RequestTrace) -> None:
    """Note usage and finish reason of an engine's plain reply.

    Raises:
        EngineFault: it is no completion.
    """
    try:
        fields = orjson.loads(body)
        finish_reason = fields["choices"][0]["finish_reason"]
        if (usage := fields.get("usage")) is not None:
            trace.see_usage(Usage.model_validate(usage))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError, ValidationError):
        raise EngineFault("the engine's reply is no completion") from None
    trace.succeed(str(finish_reason))
