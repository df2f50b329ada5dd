"""The parts that handlers use, hung on the application by its composition root."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from gateway.admission.admission import Admission
from gateway.api.dispatch import Dispatch
from gateway.comparisons.comparisons import Comparisons
from gateway.live.sampler import Live
from gateway.page.assets import Asset
from gateway.pool.pool import Pool
from gateway.record import Tracing
from gateway.registry import Metrics
from gateway.settings import Settings
from gateway.shadow.aside import Aside
from gateway.shadow.judge import Judge
from gateway.shadow.ladder_keeper import LadderKeeper
from gateway.shadow.shadow import Shadow


@dataclass(frozen=True, slots=True)
class Service:
    """Everything behind the routes."""

    settings: Settings
    metrics: Metrics
    pool: Pool
    dispatch: Dispatch
    admission: Admission
    shadow: Shadow
    judge: Judge
    live: Live
    assets: Mapping[str, Asset]
    """The files of the page."""
    comparisons: Comparisons
    aside: Aside = field(default_factory=Aside)
    """Looks at requests on their way, at its own risk."""
    keepers: tuple[LadderKeeper, ...] = ()
    tracing: Tracing | None = None


def service_of(request: Request) -> Service:
    """Return the parts of the application that got this request."""
    service: Service = request.app.state.service
    return service
