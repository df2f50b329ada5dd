"""What operators and probes ask: ``/health``, ``/ready``, ``/version``."""

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.api.service import service_of

RETRY_AFTER_S = 2


class Readiness(BaseModel):
    """Reply of ``GET /ready``; models by the name that pins their variant."""

    status: str
    models: dict[str, str]


class Versions(BaseModel):
    """Reply of ``GET /version``; engines by the model they serve, null where one does not say."""

    version: str
    engines: dict[str, str | None]


async def health(request: Request) -> dict[str, str]:
    """Return that this process answers; says nothing of the engines."""
    return {"status": "ok"}


async def ready(request: Request) -> Response:
    """Return 200 while requests are taken and a model is ready, or none is to be loaded first."""
    pool = service_of(request).pool
    states = {shot.spec.served_name: shot.state for shot in pool.snapshots()}
    is_ready = pool.is_ready
    status = "ready" if is_ready else "draining" if pool.is_draining else "not ready"
    content: dict[str, Any] = {"status": status, "models": states}
    if is_ready:
        return JSONResponse(content)
    return JSONResponse(content, 503, headers={"retry-after": str(RETRY_AFTER_S)})


async def get_version(request: Request) -> Versions:
    """Return the version of this gateway and those of the engines that told theirs."""
    shots = service_of(request).pool.snapshots()
    engines = {shot.spec.served_name: shot.info.version for shot in shots if shot.info}
    return Versions(version=version("narrowgate"), engines=engines)
