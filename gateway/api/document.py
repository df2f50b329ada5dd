"""What the OpenAPI document says beyond the handlers: bodies, refusals, how to authenticate."""

from typing import Any

from pydantic import BaseModel

from gateway.api.admin import ShadowRate
from gateway.api.canary import CanaryOrder
from gateway.api.side_by_side import SideBySide
from gateway.comparisons.wanted import CompareRequest
from gateway.completion import CompletionRequest
from gateway.envelope import MAX_RETRY_AFTER_S
from gateway.forwarding import Forwarded
from gateway.protocol import ChatRequest
from gateway.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from gateway.wire import Wire

_REF_TEMPLATE = "#/components/schemas/{model}"
_JSON = "application/json"
CONFLICT = 409
_REFUSALS = {
    400: "The body is wrong or asks for what cannot be done.",
    401: "The key is missing or unknown.",
    403: "The key is not for this.",
    404: "No such model, or its engine has no such path.",
    408: "The body did not come in time.",
    CONFLICT: "Another comparison is running, or the model has a canary.",
    413: "The body is too long.",
    421: "The header 'host' is not one of those that are served.",
    429: "The key has used up its rate, or the engine takes no more requests now.",
    500: "A defect of the gateway.",
    502: "The engine failed.",
    503: "The model cannot serve now.",
    504: "The engine was silent for too long.",
}


_OF_ALL = tuple(each for each in _REFUSALS if each != CONFLICT)


class ErrorFields(BaseModel):
    """What went wrong; ``param`` names the field where there is one."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """Body of every reply that is an error."""

    error: ErrorFields


class Generated(BaseModel):
    """A plain reply of a generating route; a streamed one is made of chunks of this form."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    system_fingerprint: str | None = None
    usage: dict[str, Any] | None = None


BODIES: tuple[type[Wire], ...] = (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    Forwarded,
    ShadowRate,
    SideBySide,
    CompareRequest,
    CanaryOrder,
)
_REPLIES: tuple[type[BaseModel], ...] = (ErrorEnvelope, Generated, Tokens, Detokenized)


def post_route(
    body: type[Wire], reply: type[BaseModel] | None, *, streams: bool, status: int = 200
) -> dict[str, Any]:
    """Return the part of an operation that its handler, which reads bodies itself, does not tell.

    Without a ``reply`` its form is the engine's business.
    """
    schema: dict[str, Any] = {"type": "object"} if reply is None else _ref(reply)
    content: dict[str, Any] = {_JSON: {"schema": schema}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "object"}}  # of each event
    answered = {"description": "The answer.", "content": content}
    return {
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref(body)}}},
        "responses": {str(status): answered} | refusals(*_OF_ALL),
    }


def refusals(*statuses: int) -> dict[str, Any]:
    """Return the replies of an operation that are errors, as its key ``responses`` has them."""
    return {str(status): _refusal(status) for status in statuses}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Return FastAPI's document with all schemas, and without replies that no route gives."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for kind in (*BODIES, *_REPLIES):
        schema = kind.model_json_schema(ref_template=_REF_TEMPLATE)
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"bearer": []}]  # whether keys are asked for is a setting
    return document


def _ref(kind: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF_TEMPLATE.format(model=kind.__name__)}


def _refusal(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _REFUSALS[status],
        "content": {_JSON: {"schema": _ref(ErrorEnvelope)}},
    }
    if status in {429, 503}:
        seconds = {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER_S}
        found["headers"] = {"retry-after": {"required": True, "schema": seconds}}
    return found
