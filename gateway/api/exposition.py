"""``/metrics`` and its views: the gateway's families and, asked for at once, its engines'."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from itertools import chain

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.service import Service, service_of
from gateway.metric_views import EngineSeries, otel_view, own_view, vllm_view
from gateway.pool.lease import ReadyEngine
from gateway.registry import render

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""For an engine's answer; one that is later is missing in this scrape."""


async def metrics(request: Request) -> Response:
    """Return all metrics, in the format that the scraper asked for."""
    service = service_of(request)
    engines = await _read_engines(service)
    return _response(request, chain(service.metrics.registry.collect(), own_view(engines)))


async def vllm_metrics(request: Request) -> Response:
    """Return what the engines say under vLLM's names."""
    return _response(request, vllm_view(await _read_engines(service_of(request))))


async def otel_metrics(request: Request) -> Response:
    """Return durations and tokens under OpenTelemetry's names for generative AI."""
    return _response(request, otel_view(service_of(request).metrics.registry.collect()))


def _response(request: Request, families: Iterable[Metric]) -> Response:
    body, content_type = render(_Given(families), request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})


class _Given(Collector):
    """Families that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def _read_engines(service: Service) -> list[EngineSeries]:
    """Return what each engine of ours says; others have scrapers of their own."""
    asked = [each for each in service.pool.ready_engines() if each.is_ours]
    found = await asyncio.gather(*(_read(each) for each in asked))
    return [each for each in found if each is not None]


async def _read(engine: ReadyEngine) -> EngineSeries | None:
    text = await engine.client.read_metrics(PATIENCE_S)
    try:
        families = await asyncio.to_thread(_parse, text)
    except ValueError as error:
        logger.warning("the metrics of %s are not read: %s", engine.name, error)
        return None
    spec = engine.spec
    return EngineSeries(spec.alias, spec.variant, spec.served_name, engine.index, families)


def _parse(text: bytes) -> tuple[Metric, ...]:
    return tuple(text_string_to_metric_families(text.decode()))
