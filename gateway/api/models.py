"""``GET /v1/models``: what is served, what was done to it, and in which state it is."""

from starlette.requests import Request

from gateway.admission.admission import key_of
from gateway.admission.door import check_model
from gateway.api.service import service_of
from gateway.pool.state import Snapshot
from gateway.protocol import ModelCard, ModelList
from gateway.shadow.judge import Judge


async def list_models(request: Request) -> ModelList:
    """Return every model that the key opens, and each of its variants by the name that pins it."""
    key = key_of(request)
    cards: list[ModelCard] = []
    service = service_of(request)
    judge = service.judge
    for snapshot in service.pool.snapshots():
        if key is not None and not key.may_use(snapshot.spec.alias):
            continue
        if snapshot.is_active:
            cards.append(_card(snapshot.spec.alias, snapshot, judge))
        cards.append(_card(snapshot.spec.served_name, snapshot, judge))
    return ModelList(data=cards)


async def get_model(request: Request, model: str) -> ModelCard:
    """Return one model by either name."""
    check_model(key_of(request), model)
    service = service_of(request)
    return _card(model, service.pool.find(model), service.judge)


def _card(name: str, snapshot: Snapshot, judge: Judge) -> ModelCard:
    spec, info = snapshot.spec, snapshot.info
    summary = judge.summary(spec.alias, spec.variant)
    return ModelCard(
        id=name,
        created=snapshot.created,
        variant=spec.variant,
        recipe=spec.variant,
        recipe_digest=info.recipe_digest if info else None,
        weight_bits=info.weight_bits if info else None,
        weights_bytes=info.weights_bytes if info else None,
        weights_uncompressed_bytes=info.weights_bytes_before if info else None,
        max_model_len=info.max_model_len if info else None,
        schemes=info.schemes if info else None,
        kernels=info.kernels if info else None,
        numerics=info.numerics if info else None,
        kv_dtype=info.kv_dtype if info else None,
        engine=snapshot.backend,
        engine_version=info.version if info else None,
        state=snapshot.state,
        active=snapshot.is_active,
        verdict=summary.state if summary else None,
    )
