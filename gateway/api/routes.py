"""The route table."""

from typing import Any

from fastapi import APIRouter

from gateway.api.admin import activate, events, list_variants, load, unload
from gateway.api.generation import chat_completions, completions
from gateway.api.models import get_model, list_models
from gateway.api.operations import get_version, health, metrics, ready
from gateway.completion import CompletionRequest
from gateway.protocol import ChatRequest
from gateway.wire import SamplingFields

_REF_TEMPLATE = "#/components/schemas/{model}"


def make_router() -> APIRouter:
    """Return every route of the gateway."""
    router = APIRouter()
    post, get = router.post, router.get
    # The handler reads the body itself (limits, exact errors); the schema is for clients.
    chat, text = _body(ChatRequest), _body(CompletionRequest)
    post("/v1/chat/completions", response_model=None, openapi_extra=chat)(chat_completions)
    post("/v1/completions", response_model=None, openapi_extra=text)(completions)
    get("/v1/models")(list_models)
    get("/v1/models/{model:path}")(get_model)
    get("/health")(health)
    get("/ready", response_model=None)(ready)
    get("/metrics", response_model=None)(metrics)
    get("/version")(get_version)
    get("/admin/models", response_model=None)(list_variants)
    post("/admin/models/{model}/load", response_model=None)(load)
    post("/admin/models/{model}/unload", response_model=None)(unload)
    post("/admin/models/{model}/activate", response_model=None)(activate)
    get("/admin/events", response_model=None)(events)
    return router


def body_schemas() -> dict[str, Any]:
    """Return the schemas that the bodies of requests refer to."""
    schemas: dict[str, Any] = {}
    for kind in (ChatRequest, CompletionRequest):
        schemas |= _schema(kind).pop("$defs", {})
    return schemas


def _body(kind: type[SamplingFields]) -> dict[str, Any]:
    schema = {key: value for key, value in _schema(kind).items() if key != "$defs"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _schema(kind: type[SamplingFields]) -> dict[str, Any]:
    return kind.model_json_schema(ref_template=_REF_TEMPLATE)
