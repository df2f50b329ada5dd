"""The route table."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.admin import (
    ShadowRate,
    activate,
    events,
    list_variants,
    load,
    set_shadow,
    show_shadow,
    unload,
)
from gateway.api.canary import CanaryOrder, end_canary, show_canary, start_canary
from gateway.api.comparing import (
    end_comparison,
    list_comparisons,
    show_comparison,
    start_comparison,
)
from gateway.api.document import CONFLICT, Generated, post_route, refusals
from gateway.api.engine_routes import (
    chat_completions,
    completions,
    detokenize,
    embeddings,
    responses,
    tokenize,
)
from gateway.api.exposition import metrics, otel_metrics, vllm_metrics
from gateway.api.fidelity import show_fidelity
from gateway.api.live import show_live
from gateway.api.models import get_model, list_models
from gateway.api.operations import Readiness, get_version, health, ready
from gateway.api.page import show_page, show_page_file
from gateway.api.side_by_side import SideBySide, side_by_side
from gateway.comparisons.wanted import CompareRequest
from gateway.completion import CompletionRequest
from gateway.forwarding import Forwarded
from gateway.metrics.manifest import PATHS
from gateway.protocol import ChatRequest
from gateway.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from gateway.wire import Wire

_PLAIN_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


class _BareRoute(APIRoute):
    """A route whose handler takes the request as it is: nothing is looked up or read for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def make_router() -> APIRouter:
    """Return every route of the gateway."""
    router = APIRouter()

    def post(path: str, body: type[Wire], reply: Any, handler: Any, *, streams: bool) -> None:
        # The handler reads the body itself (limits, exact errors); the schema is for clients.
        extra = post_route(body, reply, streams=streams)
        options: dict[str, Any] = {"response_model": None, "openapi_extra": extra}
        router.add_api_route(
            path, handler, methods=["POST"], route_class_override=_BareRoute, **options
        )

    def get(path: str, handler: Callable[..., Any], **options: Any) -> None:
        router.get(path, **options)(handler)
        router.head(path, include_in_schema=False, response_model=None)(handler)

    post("/v1/chat/completions", ChatRequest, Generated, chat_completions, streams=True)
    post("/v1/completions", CompletionRequest, Generated, completions, streams=True)
    post("/v1/responses", Forwarded, None, responses, streams=True)
    post("/v1/embeddings", Forwarded, None, embeddings, streams=False)
    post("/tokenize", TokenizeRequest, Tokens, tokenize, streams=False)
    post("/detokenize", DetokenizeRequest, Detokenized, detokenize, streams=False)
    get("/v1/models", list_models)
    get("/v1/models/{model:path}", get_model, openapi_extra={"responses": refusals(404)})
    get("/health", health)
    get("/ready", ready, response_model=Readiness, responses={503: {"model": Readiness}})
    for path, view in zip(PATHS, (metrics, vllm_metrics, otel_metrics), strict=True):
        get(path, view, response_model=None, responses={200: _PLAIN_TEXT})
    get("/version", get_version)
    guarded: dict[str, Any] = {
        "response_model": None,
        "openapi_extra": {"responses": refusals(400, 401, 403, 404, 503)},
    }
    get("/dashboard", show_page, include_in_schema=False)
    get("/dashboard/{file}", show_page_file, include_in_schema=False)
    get("/admin/live", show_live, **guarded)
    get("/admin/models", list_variants, **guarded)
    router.get("/admin/events", **guarded)(events)
    get("/admin/shadow", show_shadow, **guarded)
    get("/admin/fidelity", show_fidelity, **guarded)
    post("/admin/shadow", ShadowRate, None, set_shadow, streams=False)
    post("/admin/side-by-side", SideBySide, None, side_by_side, streams=False)
    get("/admin/compare", list_comparisons, **guarded)
    get("/admin/compare/{comparison}", show_comparison, **guarded)
    router.delete("/admin/compare/{comparison}", **guarded)(end_comparison)
    begun = post_route(CompareRequest, None, streams=False, status=202)
    begun["responses"] |= refusals(CONFLICT)
    begin = router.post("/admin/compare", response_model=None, status_code=202, openapi_extra=begun)
    begin(start_comparison)
    trial = "/admin/models/{model}/canary"
    get(trial, show_canary, **guarded)
    router.delete(trial, **guarded)(end_canary)
    tried = post_route(CanaryOrder, None, streams=False, status=202)
    tried["responses"] |= refusals(CONFLICT)
    router.post(trial, response_model=None, status_code=202, openapi_extra=tried)(start_canary)
    for verb, handler in (("load", load), ("unload", unload), ("activate", activate)):
        router.post(f"/admin/models/{{model}}/{verb}", **guarded)(handler)
    return router
