"""Cases of the alerts about the gateway."""

from collections.abc import Iterator

from tests.grafana.alert_case import HERE, MODEL, VARIANT, Case, series

OVERVIEW = "/d/narrowgate-overview"
GATEWAY = "/d/narrowgate-gateway"
OF_CHAT = "?var-model=chat"
UP = series("up", HERE)
BUDGET_LABELS = {"job": "narrowgate", "model": "chat"}


def requests(ok: str, failed: str, outcome: str = "error") -> dict[str, str]:
    """Return requests by outcome, at two gateways."""
    kind = {"operation": "chat", "finish_reason": "stop"}
    name = "narrowgate_requests_total"
    return {
        series(name, VARIANT | kind, outcome="ok"): ok,
        series(name, VARIANT | kind | {"instance": "gw2:8000"}, outcome="ok"): ok,
        series(name, VARIANT | kind, outcome=outcome): failed,
    }


def streams(every: str, quick: str) -> dict[str, str]:
    """Return streams, and those whose first token came within 2.5 s."""
    name = "narrowgate_time_to_first_token_seconds"
    return {
        series(f"{name}_count", VARIANT): every,
        series(f"{name}_bucket", VARIANT, le="2.5"): quick,
        series(f"{name}_bucket", VARIANT, le="+Inf"): every,
    }


def service_cases() -> Iterator[Case]:
    """Yield them all."""
    down = "Prometheus gets no metrics from gw:8000."
    other = series("up", HERE, instance="gw2:8000")
    yield Case("GatewayDown", "5m", {UP: "1 1 0x9", other: "1x9"}, HERE, down, OVERVIEW)
    nobody = "Prometheus gets no metrics from any gateway."
    yield Case("GatewayDown", "5m", {}, {"job": "narrowgate"}, nobody, OVERVIEW)
    yield Case("GatewayDown", "5m", {UP: "1 1 1 1 0 1x9"})  # a restart
    yield from burn_cases()
    yield from queue_cases()
    failures = series("narrowgate_rate_store_failures_total", HERE)
    yield Case(
        "RateStoreFailing",
        "20m",
        {failures: "0x5 0+2x15"},
        HERE,
        "gw:8000 could not use the store 10 times in 5 minutes; with several gateways a key gets "
        "its limit at each.",
        GATEWAY,
    )
    for at in ("7m", "11m", "12m", "13m", "20m"):  # once, or a short time, before 6 minutes and so
        yield Case("RateStoreFailing", at, {failures: "0x5 1x15"})
        yield Case("RateStoreFailing", at, {failures: "0x5 9x15"})
    samples = series("scrape_samples_scraped", HERE)
    yield Case(
        "MetricsCardinality",
        "20m",
        {samples: "31000x20"},
        HERE,
        "gw:8000 gave 31k samples at a scrape, more than 20k.",
        GATEWAY,
    )
    yield Case("MetricsCardinality", "20m", {samples: "19000x20"})
    others = series("scrape_samples_scraped", HERE, job="node")
    yield Case("MetricsCardinality", "20m", {others: "31000x20"})


def burn_cases() -> Iterator[Case]:
    """Yield those of the budgets, each arm of an alert by itself."""
    dashboard = OVERVIEW + OF_CHAT
    for at, found, told in (
        # 4 failures a minute beside 8 answers of each of two gateways.
        ("70m", requests("0+8x70", "0+4x70"), "20%"),
        # A tenth for six hours: too little for the arm of one hour.
        ("360m", requests("0+9x360", "0+2x360", "shed"), "10%"),
    ):
        yield Case(
            "ErrorBudgetBurnFast",
            at,
            found,
            BUDGET_LABELS,
            f"{told} of the requests to chat failed in the last hour or six; 1% may.",
            dashboard,
        )
    # A twentieth for six hours; clients' faults and leaving clients, which burn nothing.
    yield Case("ErrorBudgetBurnFast", "360m", requests("0+19x360", "0+2x360", "timeout"))
    for outcome in ("rejected", "client_abort"):
        yield Case("ErrorBudgetBurnFast", "70m", requests("0+8x70", "0+4x70", outcome))
    # An hour of failures that ended 40 minutes ago; four failures in a night.
    yield Case("ErrorBudgetBurnFast", "110m", requests("0+8x110", "0+4x70 280x40"))
    yield Case("ErrorBudgetBurnFast", "70m", requests("0x70", "0x66 1 2 3 4"))
    yield Case(
        "ErrorBudgetBurnSlow",
        "720m",
        requests("0+10x720", "0+1x720"),
        BUDGET_LABELS,
        "4.762% of the requests to chat failed in the last three days; 1% may.",
        dashboard,
    )
    yield Case("ErrorBudgetBurnSlow", "720m", requests("0+100x720", "0+1x720"))
    for at, found, told in (
        ("70m", streams("0+10x70", "0+2x70"), "80%"),
        ("360m", streams("0+10x360", "0+6x360"), "40%"),
    ):
        yield Case(
            "FirstTokenBudgetBurnFast",
            at,
            found,
            BUDGET_LABELS,
            f"{told} of the streams to chat had their first token after more than 2.5 s "
            "in the last hour or six; 5% may.",
            dashboard,
        )
    yield Case("FirstTokenBudgetBurnFast", "360m", streams("0+10x360", "0+8x360"))
    yield Case(
        "FirstTokenBudgetBurnSlow",
        "720m",
        streams("0+10x720", "0+9x720"),
        BUDGET_LABELS,
        "10% of the streams to chat had their first token after more than 2.5 s "
        "in the last three days; 5% may.",
        dashboard,
    )
    yield Case("FirstTokenBudgetBurnSlow", "720m", streams("0+100x720", "0+96x720"))


def queue_cases() -> Iterator[Case]:
    """Yield those of the queue."""
    dashboard = GATEWAY + OF_CHAT
    rejected = "narrowgate_admission_rejections_total"
    full = series(rejected, MODEL, reason="queue_full")
    late = series(rejected, MODEL, reason="queue_timeout")
    yield Case(
        "QueueSaturated",
        "20m",
        {full: "0+2x20", late: "0+1x20"},
        MODEL,
        "gw:8000 turned 6 requests for chat away in 2 minutes: queue full, waited too long, or "
        "process full.",
        dashboard,
    )
    yield Case("QueueSaturated", "20m", {full: "0x18 40 40 40"})  # a burst, just now
    for at in ("13m", "15m", "16m", "17m"):  # a burst of a minute, minutes ago
        yield Case("QueueSaturated", at, {full: "0x9 20 40x10"})
    yield Case("QueueSaturated", "20m", {series(rejected, MODEL, reason="request_rate"): "0+9x20"})
    waiting = series("narrowgate_requests_waiting", MODEL)
    yield Case(
        "QueueStanding",
        "20m",
        {waiting: "3x20"},
        MODEL,
        "3 requests wait for chat at gw:8000; more come in than are answered.",
        dashboard,
    )
    yield Case("QueueStanding", "20m", {waiting: "3x9 0 3x10"})
