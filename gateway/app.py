"""The composition root: where all parts of the gateway meet."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from compression.events import OnProgress, ignore
from compression.recipe import FULL
from gateway.admission.admission import Admission
from gateway.api.border import Border, on_api_error, on_http_exception
from gateway.api.dispatch import Dispatch
from gateway.api.document import complete
from gateway.api.guard import Guard
from gateway.api.routes import make_router
from gateway.api.service import Service
from gateway.comparisons.comparisons import Comparisons
from gateway.errors import ApiError
from gateway.launch import Launch, Launcher
from gateway.live.sampler import Live
from gateway.page.assets import load_assets
from gateway.pool.pool import Pool
from gateway.pool.state import Patience, Snapshot
from gateway.registry import Metrics
from gateway.settings import Settings
from gateway.shadow.fixed_texts import FixedTextsCheck
from gateway.shadow.judge import Judge
from gateway.shadow.ladder_keeper import LadderKeeper
from gateway.shadow.ladder_state import plan_of
from gateway.shadow.ledger import Ledger
from gateway.shadow.probe import Probe
from gateway.shadow.references import References
from gateway.shadow.rules import Rules, ledger_path, ledger_rules, make_rules
from gateway.shadow.shadow import Shadow
from gateway.shadow.since_build import changes_of
from gateway.shadow.subject import Subject
from gateway.specs import ModelSpec, make_specs
from gateway.telemetry import open_tracing

logger = logging.getLogger(__name__)

_EXPOSED = ("x-request-id", "x-narrowgate-variant", "retry-after")
"""The headers of a reply that pages of other origins may read."""


def create_service(
    settings: Settings,
    *,
    launch: Launch | None = None,
    on_progress: OnProgress = ignore,
    patience: Patience | None = None,
) -> Service:
    """Return the parts behind the routes; nothing is started yet.

    Raises:
        SettingsError: a recipe, a slice, the key file, the URL of Redis or the ledger cannot be
            used, or traces need libraries.
    """
    metrics, specs = Metrics(), make_specs(settings)
    metrics.begin_doors()
    for spec in specs:
        for variant in spec.variants:
            metrics.begin(spec.alias, variant.variant)
    launch = launch or Launcher(settings, on_progress)
    pool = Pool(
        specs,
        launch,
        metrics=metrics,
        on_progress=on_progress,
        patience=patience
        or Patience(
            stall_timeout_s=settings.stall_timeout_s,
            drain_s=settings.drain_s,
            load_wait_s=settings.load_wait_s,
        ),
        memory_budget=settings.engine_memory,
        smoke_check_max_nll_increase=settings.smoke_check_max_nll_increase,
    )
    dispatch = Dispatch(
        pool, max_retries=settings.max_retries, patience_s=settings.sse_keep_alive_s
    )
    admission = Admission(settings, metrics)
    tracing = open_tracing(settings.otlp_endpoint)
    rules = make_rules(settings.shadow)
    rates = {alias: settings.shadow_rate(alias) for alias in settings.models}
    _tell_of_bounds(specs, settings)
    references = References(
        settings.models,
        settings.shadow.reference,
        launch,
        metrics=metrics,
        is_wanted=lambda alias: pool.is_ready and rates[alias] > 0,
    )
    judge = Judge(
        rules,
        rate_of=lambda alias: rates.get(alias, 0.0),
        reference_of=lambda alias: references.of(alias).identity,
        look=lambda alias, variant: _subject(pool.find(f"{alias}@{variant}"), settings),
        metrics=metrics,
        publish=pool.events.publish,
        ledger=_open_ledger(settings, is_scored=any(rates.values())),
    )
    shadow = Shadow(
        settings.shadow,
        rates,
        metrics=metrics,
        references=references,
        probe=Probe(metrics, pool.ready_engines),
        fixed_texts=FixedTextsCheck(
            metrics,
            pool.ready_engines,
            lambda alias, variant: pool.find(f"{alias}@{variant}").prepared,
            publish=pool.events.publish,
            tell=lambda alias, variant, found: judge.hold(alias, variant, changes_of(found)),
            every_s=settings.shadow.fixed_texts_every_s,
        ),
        num_busy=lambda: pool.num_running + admission.num_waiting,
        sinks=(judge,),
        note_slices=judge.drawn,
        own_slices=rules.own_slices,
    )
    keepers = _create_keepers(specs, rules, pool, judge, metrics)
    comparisons = Comparisons(launch, pool)
    return Service(
        settings=settings,
        metrics=metrics,
        pool=pool,
        dispatch=dispatch,
        admission=admission,
        shadow=shadow,
        judge=judge,
        live=Live(metrics),
        assets=load_assets(),
        comparisons=comparisons,
        keepers=keepers,
        tracing=tracing,
    )


def _tell_of_bounds(specs: Sequence[ModelSpec], settings: Settings) -> None:
    """Say which variants are not scored exactly, where that is what was asked for."""
    shadow = settings.shadow
    for variant in (variant for spec in specs for variant in spec.variants):
        is_asked = shadow.estimator == "exact" and settings.shadow_rate(variant.alias) > 0
        found = shadow.estimator_of(variant.alias, variant.settings)
        if is_asked and found != "exact" and variant.settings.recipe != FULL:
            logger.warning(
                "%s is scored by 'topk': 'exact' needs engine and reference to be embedded ones "
                "of this gateway",
                variant.served_name,
            )


def _subject(shot: Snapshot, settings: Settings) -> Subject | None:
    """Return what a verdict of a variant would be about now."""
    return Subject.of(shot, settings.shadow.estimator_of(shot.spec.alias, shot.spec.settings))


def _create_keepers(
    specs: Sequence[ModelSpec],
    rules: Rules,
    pool: Pool,
    judge: Judge,
    metrics: Metrics,
) -> tuple[LadderKeeper, ...]:
    """Return who keeps the ladders that have more than one rung."""
    return tuple(
        LadderKeeper(
            spec.alias,
            rules.ladder,
            plan=plan_of(spec, rules.ladder),
            pool=pool,
            judge=judge,
            metrics=metrics,
            publish=pool.events.publish,
        )
        for spec in specs
        if len(spec.variants) > 1
    )


def _open_ledger(settings: Settings, *, is_scored: bool) -> Ledger | None:
    """Return the ledger; a file nobody named is made only where something is scored."""
    said = settings.shadow.ledger
    path = ledger_path(said, settings.port)
    if path is None or not (is_scored or said.path):
        return None
    return Ledger(path, ledger_rules(said))


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
        # The last one added is the outermost: a browser may read refusals too.
        self.add_middleware(Guard, door=service.admission.door)
        if origins := service.settings.cors_origins:
            self.add_middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=_EXPOSED,
            )
        self.add_middleware(Border, tracing=service.tracing)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        return complete(super().openapi())
