"""Whether traces are wanted, and by what means: decided without loading their libraries."""

import logging
import os
from importlib.util import find_spec

from gateway.errors import SettingsError
from gateway.record import Tracing

logger = logging.getLogger(__name__)

_STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_LIBRARIES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_EXTRA = "pip install 'narrowgate[tracing]'"


def is_wanted(endpoint: str | None) -> bool:
    """Return whether spans are to be sent, by the setting or by OpenTelemetry's own variables.

    Raises:
        SettingsError: the setting is there, the libraries are not.
    """
    variable = next((name for name in _STANDARD if os.environ.get(name)), None)
    if endpoint is None and variable is None:
        return False
    if _has_libraries():
        return True
    if endpoint is None:
        # Clusters set it for everything that runs in them.
        logger.warning("no traces are sent, though %s is set: that needs %s", variable, _EXTRA)
        return False
    raise SettingsError(
        f"setting 'otlp_endpoint' is {endpoint!r}, and traces need the extra 'tracing': {_EXTRA}"
    )


def _has_libraries() -> bool:
    try:
        return all(find_spec(name) for name in _LIBRARIES)
    except ModuleNotFoundError:  # of a package above
        return False


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Return what makes spans of requests; None where nobody wants them.

    Raises:
        SettingsError: the setting is there, the libraries are not.
    """
    if not is_wanted(endpoint):
        return None
    from gateway.tracing import OtelTracing

    return OtelTracing(endpoint)
