"""``/admin/models/ALIAS/canary``: another variant on trial with a share of a model's requests."""

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from gateway.api.body import read_object
from gateway.api.service import Service, service_of
from gateway.errors import InvalidRequest
from gateway.shadow.ladder_keeper import LadderKeeper
from gateway.shadow.ladder_order import MAX_SHARE, Terms
from gateway.wire import MAX_ECHO, ExactWire, validated

MAX_PATIENCE_S = 30 * 86_400.0


class CanaryOrder(ExactWire):
    """Body of ``POST /admin/models/ALIAS/canary``; times are in seconds.

    Without ``requests`` and ``patience_s`` those of the ladder's settings count.
    """

    variant: str = Field(min_length=1, max_length=64)
    share: float = Field(gt=0, le=MAX_SHARE)
    requests: int | None = Field(default=None, ge=1, le=1_000_000)
    """Scored ones, before it is promoted."""
    patience_s: float | None = Field(default=None, gt=0, le=MAX_PATIENCE_S)


async def start_canary(request: Request, model: str) -> JSONResponse:
    """Try a variant on a share of a model's requests; what becomes of it is told here."""
    service = service_of(request)
    keeper = _keeper(service, model)
    asked = validated(CanaryOrder, await read_object(request, service.settings))
    known = service.pool.shape(model).ladder
    if asked.variant not in known:
        raise InvalidRequest(
            f"'variant' is {asked.variant[:MAX_ECHO]!r}: use one of {', '.join(known)}, or add "
            f"it to the 'ladder' of {model} in the settings",
            param="variant",
        )
    if not service.shadow.rate(model):
        raise InvalidRequest(
            f"no request of {model} is scored, so nothing can be shown of a canary: set "
            "'shadow.rate', or send POST /admin/shadow",
            param="model",
        )
    rules = keeper.rules
    terms = Terms(
        share=asked.share,
        num_requests=asked.requests or rules.canary_requests,
        patience_s=asked.patience_s or rules.canary_patience_s,
    )
    await keeper.operator.start_canary(asked.variant, terms)
    where = {"location": f"/admin/models/{model}/canary"}
    return JSONResponse(keeper.operator.canary(), 202, headers=where)


async def show_canary(request: Request, model: str) -> JSONResponse:
    """Return the canary of a model, and how the last one ended that was asked for."""
    return JSONResponse(_keeper(service_of(request), model).operator.canary())


async def end_canary(request: Request, model: str) -> JSONResponse:
    """End the canary of a model: the active variant gets all requests again."""
    operator = _keeper(service_of(request), model).operator
    await operator.end_canary()
    return JSONResponse(operator.canary())


def _keeper(service: Service, model: str) -> LadderKeeper:
    service.pool.find(model)
    if "@" in model:
        raise InvalidRequest(
            f"the path names {model!r}: name the model alone, and the variant in the body",
            param="model",
        )
    found = next((each for each in service.keepers if each.model == model), None)
    if found is None:
        raise InvalidRequest(
            f"{model} has one variant: add others to its 'ladder' in the settings", param="model"
        )
    return found
