"""``GET /admin/live``: what the page shows of the last minutes, without a Prometheus."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from gateway.api.service import Service, service_of
from gateway.live.sampler import EVERY_S, Key, Step
from gateway.pool.state import Snapshot

_DIGITS = 4
"""Significant ones, which is more than anybody reads off a chart."""
_COLUMNS = (
    *("requests", "errors", "prompt_tokens", "generated_tokens"),
    *("first_token_p50_s", "first_token_p95_s", "inter_token_p50_s", "inter_token_p95_s"),
)

Figures = dict[str, Any]


async def show_live(request: Request) -> JSONResponse:
    """Return rates and latencies of the process, of each model and variant, and their series.

    Rates are a second, over the last 10 s, minute and 5 minutes; times are in seconds.
    """
    service = service_of(request)
    pool, live = service.pool, service.live
    shots = pool.snapshots()
    status = "draining" if pool.is_draining else "ready" if pool.is_ready else "not ready"
    figures = _figures(service, shots)
    models: dict[str, Figures] = {}
    for shot in shots:
        spec = shot.spec
        model = models.setdefault(
            spec.alias, {"model": spec.alias, **figures[(spec.alias,)], "variants": []}
        )
        model["variants"].append({"variant": spec.variant, **figures[(spec.alias, spec.variant)]})
    return JSONResponse(
        {
            "time": time.time(),
            "version": version("narrowgate"),
            "status": status,
            "uptime_s": live.uptime_s,
            "memory": {
                "budget_bytes": service.settings.engine_memory,
                "held_bytes": sum(shot.num_bytes for shot in shots),
            },
            "every_s": EVERY_S,
            "times": [round(step.time, 1) for step in live.steps()],
            "all": figures[()],
            "models": list(models.values()),
        }
    )


def _figures(service: Service, shots: Sequence[Snapshot]) -> dict[Key, Figures]:
    variants: list[Key] = [(shot.spec.alias, shot.spec.variant) for shot in shots]
    models: list[Key] = [(shot.spec.alias,) for shot in shots]
    keys = list(dict.fromkeys([(), *models, *variants]))
    windows, steps = service.live.windows(keys), service.live.steps()
    running, waiting = service.live.now()
    found: dict[Key, Figures] = {}
    for key in keys:
        found[key] = {
            "running": running.get(key, 0),
            "windows": {f"{each:g}": _rounded(asdict(said)) for each, said in windows[key].items()},
            "series": _series(steps, key),
        }
        if len(key) < 2:  # a request waits for a model, not for a variant of it
            mine = waiting.values() if not key else [waiting.get(key[0], 0)]
            found[key]["waiting"] = sum(mine)
    return found


def _series(steps: Sequence[Step], key: Key) -> Figures:
    said = [step.rates.get(key) for step in steps]
    columns: Figures = {
        name: [None if each is None else _short(getattr(each, name)) for each in said]
        for name in _COLUMNS
    }
    return columns | {"running": [step.running.get(key, 0) for step in steps]}


def _rounded(fields: dict[str, float | None]) -> dict[str, float | None]:
    return {name: _short(value) for name, value in fields.items()}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
