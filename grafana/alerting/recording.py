"""The recording rules: what the objectives of a model are measured by, over each window."""

from collections.abc import Iterator, Sequence

from grafana.alerting.objectives import FIRST_TOKEN_S, WINDOWS
from grafana.alerting.rule import Recording

_REQUESTS = "narrowgate_requests_total"
_FIRST = "narrowgate_time_to_first_token_seconds"
_OF_REQUESTS = "instance, variant, operation, outcome, finish_reason"

FAILED = "model:narrowgate_requests_failed"
SLOW = "model:narrowgate_first_token_slow"


def recordings(windows: Sequence[str] = WINDOWS) -> Iterator[Recording]:
    """Yield the recording rules of windows; those of all gateways of a job together."""
    for window in windows:
        yield from _availability(window)
        yield from _first_token(window)


def _availability(window: str) -> Iterator[Recording]:
    counted = f"model:narrowgate_requests_counted:rate{window}"
    failed = f"{FAILED}:rate{window}"
    yield Recording(
        counted,
        f"sum without ({_OF_REQUESTS}) (\n"
        f'  rate({_REQUESTS}{{outcome!~"rejected|client_abort"}}[{window}])\n)',
    )
    # The first failure of a rare operation is no rise, those of chat and completion begin at 0.
    # A model that never failed has no series of failures: that is 0, not nothing.
    yield Recording(
        failed,
        f"sum without ({_OF_REQUESTS}) (\n"
        f'  rate({_REQUESTS}{{outcome=~"error|timeout|shed"}}[{window}])\n)\n'
        f"or {counted} * 0",
    )
    yield Recording(f"{FAILED}:ratio_rate{window}", f"{failed} / ({counted} > 0)")


def _first_token(window: str) -> Iterator[Recording]:
    streams = f"model:narrowgate_first_token:rate{window}"
    slow = f"{SLOW}:rate{window}"
    yield Recording(streams, f"sum without (instance, variant) (rate({_FIRST}_count[{window}]))")
    yield Recording(
        slow,
        f"{streams}\n- sum without (instance, variant, le) (\n"
        f'  rate({_FIRST}_bucket{{le="{FIRST_TOKEN_S}"}}[{window}])\n)',
    )
    yield Recording(f"{SLOW}:ratio_rate{window}", f"{slow} / ({streams} > 0)")
