"""The engine's HTTP face: routes, error replies, and the order of stopping."""

import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.capture import parse_wish
from gateway.completion import parse_completion
from gateway.engine.frames import ReplyFrames
from gateway.engine.generation import Choices
from gateway.engine.metrics import View
from gateway.engine.reply import PlainReply, StreamedReply
from gateway.engine.score_reply import ScoreReply
from gateway.engine.service import EngineService
from gateway.engine.trace_headers import TakeTrace
from gateway.envelope import render
from gateway.errors import (
    ApiError,
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
)
from gateway.protocol import parse_chat, parse_object
from gateway.wire import SamplingFields

MAX_BODY_BYTES = 16 * 1024 * 1024
KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection, so that they never reuse one that is closing."""

DRAIN_POLL_S = 0.02
AT_ONCE_EXIT_CODE = 128 + signal.SIGTERM

Reply = PlainReply | StreamedReply

_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")

logger = logging.getLogger(__name__)


def create_app(service: EngineService) -> Starlette:
    """Return the ASGI application of one engine."""

    async def chat_completions(request: Request) -> Reply:
        with service.preparing():
            body = parse_chat(parse_object(await _read_body(request)))
            service.check_open(body.model)
            wish = parse_wish(request.headers)
            answers = await service.chat(body, request_id=_request_id(request), wish=wish)
        return _reply(body, *answers)

    async def completions(request: Request) -> Reply:
        with service.preparing():
            body = parse_completion(parse_object(await _read_body(request)))
            service.check_open(body.model)
            wish = parse_wish(request.headers)
            answers = await service.complete(body, request_id=_request_id(request), wish=wish)
        return _reply(body, *answers)

    async def score(request: Request) -> ScoreReply:
        with service.preparing():
            fields = parse_object(await _read_body(request))
            return ScoreReply(*service.score(fields, request_id=_request_id(request)))

    async def capture(request: Request) -> Response:
        recording = service.captures.pop(request.path_params["capture_id"])
        if recording is None:
            raise RouteNotFound(
                "there is no such capture: each is told once, soon after its answer"
            )
        return _json(recording.columns())

    async def rows(request: Request) -> Response:
        start, stop = (_number(request, name) for name in ("start", "stop"))
        found = service.captures.rows(request.path_params["capture_id"], start, stop)
        if found is None:
            raise RouteNotFound("there are no such rows: they are kept until their score is made")
        return StreamingResponse(_each(found), media_type="application/octet-stream")

    async def forget(request: Request) -> Response:
        service.captures.forget(request.path_params["capture_id"])
        return Response(status_code=204)

    async def tokenize(request: Request) -> Response:
        with service.preparing():
            return _json(await service.tokenize(parse_object(await _read_body(request))))

    async def detokenize(request: Request) -> Response:
        with service.preparing():
            return _json(await service.detokenize(parse_object(await _read_body(request))))

    async def metrics(request: Request) -> Response:
        view: View = "vllm" if request.url.path.endswith("/vllm") else "own"
        body, content_type = service.metrics.render(request.headers.get("accept", ""), view)
        return Response(body, headers={"content-type": content_type})

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [service.model_card()]})

    async def info(request: Request) -> Response:
        return _json(service.description)

    async def health(request: Request) -> Response:
        return _json({"status": service.status}, status=200 if service.status == "ok" else 503)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/engine/info", info, methods=["GET"]),
            Route("/engine/score", score, methods=["POST"]),
            Route("/engine/capture/{capture_id}", capture, methods=["GET"]),
            Route("/engine/capture/{capture_id}", forget, methods=["DELETE"]),
            Route("/engine/capture/{capture_id}/rows", rows, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/metrics/vllm", metrics, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
    )
    # A redirect would point wherever the client's Host header says.
    app.router.redirect_slashes = False
    if service.metrics.spans is not None:
        app.add_middleware(TakeTrace)
    return app


def _reply(body: SamplingFields, choices: Choices, frames: ReplyFrames) -> Reply:
    if body.stream:
        return StreamedReply(choices, frames, includes_usage=body.includes_usage)
    return PlainReply(choices, frames)


def _request_id(request: Request) -> str:
    """Return the id that the gateway gave the request, fit for a log line."""
    found = request.headers.get("x-request-id", "")
    return found if _SANE_ID.fullmatch(found) else "-"


async def _read_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the request body is longer than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _number(request: Request, name: str) -> int:
    """Return a number of the query.

    Raises:
        InvalidRequest: it is none.
    """
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidRequest(f"{name!r} is {text[:20]!r}: send a number", param=name)
    return int(text)


async def _each(views: list[memoryview]) -> AsyncIterator[memoryview]:
    """Send one row at a time, so that tokens pass between them."""
    for view in views:
        yield view


def _json(content: object, *, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")


def _rendered(error: ApiError) -> Response:
    status, headers, body = render(error)
    return Response(body, status_code=status, headers=headers)


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    # The message quotes what the client sent, so it stays out of the log.
    where = _request_id(request)
    logger.info("request %s: %d %s, param %.100r", where, error.status, error.code, error.param)
    return _rendered(error)


async def _internal_error(request: Request, error: Exception) -> Response:
    logger.error("request %s failed: %s", _request_id(request), type(error).__name__)
    return _rendered(InternalError())


async def _http_error(request: Request, error: Exception) -> Response:
    path = request.url.path[:200]
    if isinstance(error, HTTPException) and error.status_code == 405:
        return _rendered(MethodNotAllowed(f"{request.method} is not allowed on {path}"))
    return _rendered(RouteNotFound(f"there is nothing at {path}"))


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: on a signal, this process first drains."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(service: EngineService) -> uvicorn.Server:
    """Return the HTTP server of one engine, not started."""
    config = uvicorn.Config(
        create_app(service),
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    return _Server(config)


async def serve(service: EngineService, listener: socket.socket) -> None:
    """Serve on a bound socket until a signal; the first one drains, the second ends at once."""
    server = make_server(service)
    events = asyncio.get_running_loop()

    def exit_when_idle() -> None:
        if service.is_idle:
            server.should_exit = True
        else:
            events.call_later(DRAIN_POLL_S, exit_when_idle)

    def on_signal() -> None:
        if service.is_draining:
            logger.warning("second signal: stopping at once")
            os._exit(AT_ONCE_EXIT_CODE)
        logger.info("draining: %d unfinished request(s)", service.loop.num_unfinished)
        service.is_draining = True
        exit_when_idle()

    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(number, on_signal)
    service.loop.start(events)
    tending = events.create_task(service.captures.tend())
    try:
        await server.serve(sockets=[listener])
    finally:
        tending.cancel()
        service.close()
