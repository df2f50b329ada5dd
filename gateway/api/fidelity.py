"""``GET /admin/fidelity``: what is known of every variant's closeness to the full model."""

import math
import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from gateway.api.service import Service, service_of
from gateway.errors import InvalidRequest
from gateway.pool.state import Snapshot
from gateway.shadow.ledger_file import Window
from gateway.shadow.slices import ALL

DEFAULT_WINDOW_S = 86_400.0


async def show_fidelity(request: Request) -> JSONResponse:
    """Return verdicts by model, variant and slice, the noise floor, and the ledger's figures.

    ``?window_s=3600`` bounds what is summed up from the ledger, a day unless it is given.
    """
    service = service_of(request)
    rules, judge = service.judge.rules, service.judge
    now, window_s = time.time(), _window_s(request)
    aggregates = []
    if judge.ledger is not None:
        aggregates = await judge.ledger.aggregates(Window(since=now - window_s))
    floors = {alias: judge.floor(alias) for alias in service.settings.models}
    return JSONResponse(
        {
            "time": now,
            "promise": rules.monitor.budget.in_words(len(rules.slices)),
            "data": [_variant(service, shot) for shot in service.pool.snapshots()],
            "noise_floor": {alias: asdict(each) for alias, each in floors.items() if each},
            "ladders": {each.model: each.status() for each in service.keepers if each.is_telling},
            "ledger": None
            if judge.ledger is None
            else {
                "window_s": window_s,
                "num_lost": judge.ledger.num_lost,
                "slices": [asdict(each) for each in aggregates],
            },
        }
    )


def _variant(service: Service, shot: Snapshot) -> dict[str, Any]:
    spec = shot.spec
    verdicts = service.judge.verdicts(spec.alias, spec.variant)
    summary = service.judge.summary(spec.alias, spec.variant)
    gap = service.judge.gap(spec.alias, spec.variant)
    worst = summary.worst if summary is not None else None
    seen = [
        each
        for each in verdicts.values()
        if each.slice == ALL or each.last_scored or each.since_build
    ]
    read = service.shadow.fixed_texts.finding(spec.alias, spec.variant)
    return {
        "model": spec.alias,
        "variant": spec.variant,
        "id": spec.served_name,
        "active": shot.is_active,
        "verdict": None if summary is None else summary.state,
        "estimator": service.judge.estimator(spec.alias, spec.variant),
        # Of requests with an exact score, what top-k would have said of them.
        "topk_gap": None if gap is None else asdict(gap),
        "scored": service.judge.num_scored(spec.alias, spec.variant),
        "worst_slice": None if worst is None else worst.slice,
        "slices": [asdict(each) for each in seen],
        # What is counted begins anew with an alarm; this is what raised it.
        "alarms": {
            each.slice: asdict(each) for each in service.judge.alarms(spec.alias, spec.variant)
        },
        # What the engine reads otherwise than at the build; no request is needed for it.
        "fixed_texts": None if read is None else asdict(read),
        "free_runs": service.shadow.free_runs.status(spec.alias, spec.variant),
    }


def _window_s(request: Request) -> float:
    said = request.query_params.get("window_s")
    if said is None:
        return DEFAULT_WINDOW_S
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequest(
            f"'window_s' is {said[:40]!r}: give seconds above 0, as 3600", param="window_s"
        )
    return seconds
