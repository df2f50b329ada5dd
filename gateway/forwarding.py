"""Replies that are passed on as the engine gives them; only their usage is read."""

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import EngineDown, EngineFault
from gateway.protocol import Usage
from gateway.streaming import FrameSplitter
from gateway.trace import RequestTrace
from gateway.wire import Wire, validated

_ENDS = (b"response.completed", b"response.incomplete", b"response.failed")


class Forwarded(Wire):
    """What is read of a body that is passed on as it is."""

    model: str = Field(min_length=1)
    stream: bool | None = None


class _Counts(BaseModel):
    """Usage by either of OpenAI's pairs of names."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)


def parse_forwarded(fields: dict[str, Any]) -> Forwarded:
    """Validate what must be known of a body to find its engine.

    Raises:
        InvalidRequest: names the wrong field in ``param``.
    """
    return validated(Forwarded, fields)


def read_forwarded(body: bytes, trace: RequestTrace) -> None:
    """Note the usage of a plain reply, if it has one.

    Raises:
        EngineFault: it is no JSON object.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise EngineFault("the engine's reply is no JSON object")
    _see_usage(fields, trace)
    trace.succeed("stop")


class ResponseRelay:
    """Passes the events of ``/v1/responses`` on as bytes and sees whether the last one came."""

    def __init__(self, trace: RequestTrace) -> None:
        self._trace = trace
        self._splitter = FrameSplitter()
        self.is_complete = False
        """Whether the client was sent the last event."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes for the client.

        Raises:
            EngineFault: the chunk is no stream of events.
        """
        frames = self._splitter.feed(chunk)
        for frame in frames:
            self._look(frame)
        return b"".join(frames)

    def finish(self) -> bytes:
        """Return the last bytes for the client after the engine has closed its stream.

        Raises:
            ApiError: the stream ended before the answer did.
        """
        rest = self._splitter.flush()
        self._look(rest)
        if not self.is_complete:
            raise EngineDown("the engine's stream ended before the answer did")
        return rest

    def _look(self, frame: bytes) -> None:
        if not any(end in frame for end in _ENDS):
            return
        for line in frame.splitlines():
            if line.startswith(b"data:"):
                self._end(line[len(b"data:") :])

    def _end(self, data: bytes) -> None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise EngineFault("the engine sent an event that cannot be read") from None
        kind = event.get("type") if isinstance(event, dict) else None
        if not isinstance(kind, str) or kind.encode() not in _ENDS:
            return  # a text that speaks of one
        self.is_complete = True
        _see_usage(event.get("response"), self._trace)
        if kind == "response.failed":
            self._trace.fail(EngineFault("the engine reported a failure inside its stream"))
        else:
            self._trace.succeed("stop" if kind == "response.completed" else "length")


def _see_usage(reply: object, trace: RequestTrace) -> None:
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    if usage is None:
        return
    try:
        found = _Counts.model_validate(usage)
    except ValidationError:
        raise EngineFault("the engine sent a usage report that cannot be read") from None
    trace.see_usage(
        Usage(
            prompt_tokens=found.prompt_tokens or found.input_tokens,
            completion_tokens=found.completion_tokens or found.output_tokens,
        )
    )
