"""``/admin/compare``: comparisons of recipes with the full model, on demand."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.api.body import read_object
from gateway.api.service import service_of
from gateway.comparisons.wanted import CompareRequest, command_of
from gateway.wire import validated


async def start_comparison(request: Request) -> Response:
    """Begin a comparison and return its id; what becomes of it is told under that id."""
    service = service_of(request)
    asked = validated(CompareRequest, await read_object(request, service.settings))
    alias = service.pool.find(asked.model).spec.alias
    variants = [shot.spec for shot in service.pool.snapshots() if shot.spec.alias == alias]
    command = command_of(asked, service.settings.models[alias], variants)
    comparison = service.comparisons.start(alias, command)
    where = {"location": f"/admin/compare/{comparison.id}"}
    return JSONResponse(comparison.as_json(), 202, headers=where)


async def list_comparisons(request: Request) -> Response:
    """Return the last comparisons without their reports, the latest first."""
    found = service_of(request).comparisons.all()
    return JSONResponse({"data": [each.as_json() for each in found]})


async def show_comparison(request: Request, comparison: str) -> Response:
    """Return one comparison, with its report once it is done."""
    found = service_of(request).comparisons.find(comparison)
    return _json({**found.as_json(), "report": found.report})


async def end_comparison(request: Request, comparison: str) -> Response:
    """End a running comparison, or forget one that has ended; return it."""
    found = await service_of(request).comparisons.end(comparison)
    return JSONResponse(found.as_json())


def _json(content: dict[str, Any]) -> Response:
    # A report has many numbers, and orjson writes one that is none as null.
    return Response(orjson.dumps(content), media_type="application/json")
