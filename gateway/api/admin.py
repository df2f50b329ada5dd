"""``/admin``: what operators ask of models while the gateway serves."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from gateway.api.body import read_object
from gateway.api.service import service_of
from gateway.errors import EngineDown, InvalidRequest, StartupError
from gateway.pool.pool import Pool
from gateway.pool.state import Snapshot
from gateway.wire import ExactWire, validated


class ShadowRate(ExactWire):
    """Body of ``POST /admin/shadow``: the share of a model's requests that is scored."""

    model: str = Field(min_length=1)
    rate: float = Field(ge=0, le=1)


async def list_variants(request: Request) -> JSONResponse:
    """Return every variant with its replicas, memory and use."""
    pool = service_of(request).pool
    return JSONResponse({"data": [_fields(pool, each) for each in pool.snapshots()]})


async def load(request: Request, model: str) -> JSONResponse:
    """Load a variant and return it when it is ready."""
    pool = service_of(request).pool
    try:
        return JSONResponse(_fields(pool, await pool.control.load(model)))
    except StartupError as error:
        raise EngineDown(str(error)) from error


async def unload(request: Request, model: str) -> JSONResponse:
    """Stop a variant after its running requests have ended, and return it."""
    pool = service_of(request).pool
    return JSONResponse(_fields(pool, await pool.control.unload(model)))


async def activate(request: Request, model: str) -> JSONResponse:
    """Make ``alias@variant`` the one that serves ``alias``, and return it."""
    if "@" not in model:
        raise InvalidRequest(
            f"the path names {model!r}: name the variant too, as in {model}@int8", param="model"
        )
    pool = service_of(request).pool
    try:
        return JSONResponse(_fields(pool, await pool.control.activate(model)))
    except StartupError as error:
        raise EngineDown(str(error)) from error


async def show_shadow(request: Request) -> JSONResponse:
    """Return what became of the requests drawn to be scored, and the state of the references."""
    return JSONResponse(service_of(request).shadow.status())


async def set_shadow(request: Request) -> JSONResponse:
    """Change the share of a model's requests that is scored, until the next start."""
    service = service_of(request)
    asked = validated(ShadowRate, await read_object(request, service.settings))
    alias = service.pool.find(asked.model).spec.alias
    if asked.rate and (reason := service.settings.shadow_obstacle(alias)):
        raise InvalidRequest(reason, param="rate")
    service.shadow.set_rate(alias, asked.rate)
    return JSONResponse(service.shadow.status())


async def events(request: Request) -> StreamingResponse:
    """Stream what happens to models: states, progress of builds, loads and comparisons, swaps.

    ``Last-Event-ID`` goes on where an earlier stream ended.
    """
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isdecimal() and len(last) < 19 else None
    return StreamingResponse(_frames(request, after), media_type="text/event-stream")


async def _frames(request: Request, after: int | None) -> AsyncIterator[bytes]:
    yield b": events follow\n\n"
    async with aclosing(service_of(request).pool.events.follow(after)) as following:
        async for event in following:
            data = orjson.dumps({"time": event.time, **event.fields})
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), data)


def _fields(pool: Pool, shot: Snapshot) -> dict[str, Any]:
    shape = pool.shape(shot.spec.alias)
    return {
        "model": shot.spec.alias,
        "variant": shot.spec.variant,
        "id": shot.spec.served_name,
        "state": shot.state.value,
        "active": shot.is_active,
        "canary_share": shape.canary_share if shape.canary == shot.spec.variant else None,
        "requests_running": shot.num_running,
        "memory_bytes": shot.num_bytes,
        "idle_s": shot.idle_s,
        "load_s": shot.load_s,
        "backend": shot.backend,
        "replicas": [
            {
                "index": each.index,
                "state": each.state.value,
                "breaker": each.breaker.value,
                "requests_running": each.num_running,
                "outstanding_tokens": each.outstanding_tokens,
                "restarts": each.num_restarts,
                "url": each.url,
            }
            for each in shot.replicas
        ],
    }
