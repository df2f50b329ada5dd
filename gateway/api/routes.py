"""The route table."""

from typing import Any

from fastapi import APIRouter

from gateway.api.chat import chat_completions
from gateway.api.models import get_model, list_models
from gateway.api.operations import get_version, health, metrics, ready
from gateway.protocol import ChatRequest

_REF_TEMPLATE = "#/components/schemas/{model}"


def make_router() -> APIRouter:
    """Return every route of the gateway."""
    router = APIRouter()
    post, get = router.post, router.get
    # The handler reads the body itself (limits, exact errors); the schema is for clients.
    post("/v1/chat/completions", response_model=None, openapi_extra=_chat_body())(chat_completions)
    get("/v1/models")(list_models)
    get("/v1/models/{model:path}")(get_model)
    get("/health")(health)
    get("/ready", response_model=None)(ready)
    get("/metrics", response_model=None)(metrics)
    get("/version")(get_version)
    return router


def chat_schemas() -> dict[str, Any]:
    """Return the schemas that the body of a chat request refers to."""
    schemas: dict[str, Any] = _chat_schema().pop("$defs")
    return schemas


def _chat_body() -> dict[str, Any]:
    schema = {key: value for key, value in _chat_schema().items() if key != "$defs"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _chat_schema() -> dict[str, Any]:
    return ChatRequest.model_json_schema(ref_template=_REF_TEMPLATE)
