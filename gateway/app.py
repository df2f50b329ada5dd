"""The composition root: where all parts of the gateway meet."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from compression.events import OnProgress, ignore
from gateway.api.border import Border, on_api_error, on_http_exception
from gateway.api.routes import body_schemas, make_router
from gateway.api.service import Service
from gateway.errors import ApiError
from gateway.keeper import Launch, Patience
from gateway.launch import Launcher
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.settings import Settings, make_specs
from gateway.telemetry import open_tracing


def create_service(
    settings: Settings,
    *,
    launch: Launch | None = None,
    on_progress: OnProgress = ignore,
    patience: Patience | None = None,
) -> Service:
    """Return the parts behind the routes; nothing is started yet.

    Raises:
        SettingsError: a recipe is unknown or malformed, or traces need libraries.
    """
    metrics = Metrics()
    pool = Pool(
        make_specs(settings),
        launch or Launcher(settings),
        metrics=metrics,
        on_progress=on_progress,
        patience=patience or Patience(stall_timeout_s=settings.stall_timeout_s),
    )
    return Service(settings, metrics, pool, open_tracing(settings.otlp_endpoint))


class Application(FastAPI):
    """FastAPI with our error envelope, request ids and the full schema of a chat request."""

    def __init__(self, service: Service) -> None:
        super().__init__(
            title="Narrowgate",
            version=version("narrowgate"),
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,  # a redirect would point wherever the client's Host says
        )
        self.state.service = service
        self.include_router(make_router())
        self.add_exception_handler(ApiError, on_api_error)
        self.add_exception_handler(HTTPException, on_http_exception)
        self.add_middleware(Border, tracing=service.tracing)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"] |= body_schemas()
        return document
