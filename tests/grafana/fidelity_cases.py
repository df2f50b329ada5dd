"""Cases of the alerts about what is answered."""

from collections.abc import Iterator

from tests.grafana.alert_case import HERE, MODEL, VARIANT, Case, series

FIDELITY = "/d/narrowgate-fidelity?var-model=chat"
SHADOW = "/d/narrowgate-shadow?var-model=chat"
WHERE = "chat@int4 at gw:8000"
ACTIVE = series("narrowgate_active_variant", VARIANT)
UP = series("up", HERE)


def verdict(state: str, place: str = "all") -> dict[str, str]:
    """Return the verdict of an active variant with its evidence."""
    return {
        ACTIVE: "1x90",
        series("narrowgate_drift_state", VARIANT, slice=place): state,
        series("narrowgate_drift_alarm_mean_nats", VARIANT, slice=place): "0.1234x90",
        series("narrowgate_drift_mean_lower_nats", VARIANT, slice=place): "0x90",  # anew
        series("narrowgate_drift_tolerance_nats", VARIANT, slice=place): "0.02x90",
    }


def fidelity_cases() -> Iterator[Case]:
    """Yield them all."""
    yield from verdict_cases()
    yield from evidence_cases()
    yield from cost_cases()
    yield from answer_cases()
    step = series("narrowgate_ladder_steps_total", MODEL, **{"from": "int4", "to": "int8"})
    step = step.replace("}", ',reason="drift"}')
    yield Case(
        "LadderStepped",
        "45m",
        {step: "_x40 1x20", UP: "1x60"},
        MODEL | {"from": "int4", "to": "int8", "reason": "drift"},
        "chat at gw:8000 went from int4 to int8 (reason: drift), 1 times in 30 minutes.",
        FIDELITY,
    )
    yield Case("LadderStepped", "60m", {step: "_x15 1x50", UP: "1x60"})  # long ago


def verdict_cases() -> Iterator[Case]:
    """Yield those of verdicts."""
    shown = "when that was shown, the mean KL divergence since its tests began was"
    evidence = f"{shown} 0.123 nats a token, tolerance 0.02."
    sound = {
        series("narrowgate_drift_state", VARIANT, instance="gw2:8000", slice="all"): "1x90",
        series("narrowgate_active_variant", VARIANT, instance="gw2:8000"): "1x90",
    }
    yield Case(
        "ModelDrift",
        "10m",
        verdict("1x3 2x30") | sound,
        VARIANT | {"slice": "all"},
        f"{WHERE} drifts: {evidence}",
        FIDELITY,
    )
    # The evidence may be missing; the alarm may not.
    bare = {name: value for name, value in verdict("2x30").items() if "nats" not in name}
    unknown = f"{shown} ? nats a token, tolerance ?."
    labels = VARIANT | {"slice": "all"}
    yield Case("ModelDrift", "10m", bare, labels, f"{WHERE} drifts: {unknown}", FIDELITY)
    for state in ("0x30", "1x30", "3x30"):
        yield Case("ModelDrift", "10m", verdict(state))
    # What the ladder has left keeps its verdict and serves nobody.
    yield Case("ModelDrift", "10m", verdict("2x30") | {ACTIVE: "1x3 0x30"})
    yield Case("ModelDrift", "10m", verdict("2x30", "domain:code"))
    yield Case(
        "SliceDrift",
        "10m",
        verdict("2x30", "domain:code"),
        VARIANT | {"slice": "domain:code"},
        f"{WHERE} drifts on domain:code: {evidence}",
        FIDELITY,
    )
    # What a safer rung answers is nobody's business, unless that drifts on it, too.
    routed = {series("narrowgate_slice_routed", MODEL, variant="int8", slice="domain:code"): "1x30"}
    yield Case("SliceDrift", "10m", verdict("2x30", "domain:code") | routed)
    other = {series("narrowgate_slice_routed", MODEL, variant="int8", slice="turns:multi"): "1x30"}
    yield Case(
        "SliceDrift",
        "10m",
        verdict("2x30", "domain:code") | other,
        VARIANT | {"slice": "domain:code"},
        f"{WHERE} drifts on domain:code: {evidence}",
        FIDELITY,
    )
    above = VARIANT | {"variant": "int8", "slice": "domain:code"}
    there = {
        series(f"narrowgate_drift_{name}", above): value
        for name, value in (
            ("state", "2x30"),
            ("alarm_mean_nats", "0.05x30"),
            ("tolerance_nats", "0.01x30"),
        )
    }
    yield Case(
        "SliceDrift",
        "10m",
        verdict("2x30", "domain:code") | routed | there,
        above,
        f"chat@int8 at gw:8000 drifts on domain:code: {shown} 0.05 nats a token, tolerance 0.01.",
        FIDELITY,
    )
    yield Case("SliceDrift", "10m", verdict("2x30"))
    yield Case("SliceDrift", "10m", verdict("1x30", "domain:code"))
    kind = {"operation": "chat", "outcome": "ok", "finish_reason": "stop"}
    requests = series("narrowgate_requests_total", VARIANT | kind)
    served = {requests: "0+1x90"}
    yield Case(
        "DriftStale",
        "80m",
        verdict("1x5 3x80") | served,
        VARIANT | {"slice": "all"},
        f"{WHERE} is served, and none of its requests has been scored for an hour or more.",
        SHADOW,
    )
    yield Case("DriftStale", "80m", verdict("3x50 1 3x30") | served)  # scored in between
    yield Case("DriftStale", "80m", verdict("3x90", "domain:code") | served)
    quiet = {ACTIVE: "1x200", requests: "0+1x60 60x140"}  # asked for an hour, then no more
    yield Case("DriftStale", "200m", verdict("3x200") | quiet)
    yield from stale_slice_cases(served, quiet)


def stale_slice_cases(served: dict[str, str], quiet: dict[str, str]) -> Iterator[Case]:
    """Yield those of slices that nothing is scored of."""
    whole = series("narrowgate_drift_state", VARIANT, slice="all")
    code = verdict("1x5 3x180", "domain:code")
    of_code = VARIANT | {"slice": "domain:code"}
    words = "is served, and none of its requests in domain:code has been scored for an hour or more"
    alone = (of_code, f"{WHERE} {words}; others have.", SHADOW)
    for state in ("0x90", "1x90"):
        yield Case("SliceStale", "80m", code | served | {whole: state}, *alone)
    for state in ("2x90", "3x90"):  # others tell of it
        yield Case("SliceStale", "80m", code | served | {whole: state})
    sound = served | {whole: "1x200"}
    again = verdict("3x50 1 3x30", "domain:code")
    yield Case("SliceStale", "80m", again | sound)  # scored in between
    for state in ("0x90", "1x90", "2x90"):
        yield Case("SliceStale", "80m", verdict(state, "domain:code") | sound)
    yield Case("SliceStale", "80m", verdict("1x90") | served)
    yield Case("SliceStale", "200m", code | quiet | {whole: "1x200"})
    yield Case("SliceStale", "80m", code | sound | {ACTIVE: "1x3 0x90"})
    # Where the slice is routed, its evidence is that of the variant which answers it.
    routed = {series("narrowgate_slice_routed", MODEL, variant="int8", slice="domain:code"): "1x90"}
    yield Case("SliceStale", "80m", code | sound | routed)
    above = VARIANT | {"variant": "int8"}
    there = {
        series("narrowgate_drift_state", above, slice="domain:code"): "3x90",
        series("narrowgate_drift_state", above, slice="all"): "1x90",
        series(
            "narrowgate_requests_total", above, operation="chat", outcome="ok", finish_reason="stop"
        ): "0+1x90",
    }
    yield Case(
        "SliceStale",
        "80m",
        code | sound | routed | there,
        of_code | {"variant": "int8"},
        f"chat@int8 at gw:8000 {words}; others have.",
        SHADOW,
    )


def evidence_cases() -> Iterator[Case]:
    """Yield those of how the evidence comes about."""
    drawn = series("narrowgate_shadow_candidates_total", MODEL)
    scored = series("narrowgate_shadow_scored_total", MODEL)
    what = "requests to chat at gw:8000 that could be scored were drawn in 30 minutes; 0 were."
    told = f"30 {what}"
    yield Case("ShadowStarved", "60m", {drawn: "0+1x60"}, MODEL, told, SHADOW)
    ended = {drawn: "0+1x60", scored: "20x60"}
    yield Case("ShadowStarved", "60m", ended, MODEL, told, SHADOW)
    yield Case("ShadowStarved", "60m", {drawn: "0+1x60", scored: "0x55 1x5"})
    yield Case("ShadowStarved", "60m", {drawn: "7x60", scored: "0x60"})  # no traffic
    dropped = "narrowgate_shadow_dropped_total"
    refused = {
        series(dropped, MODEL, reason="private"): "0+2x60",
        series(dropped, MODEL, reason="unsupported"): "0+1x60",
        series(dropped, MODEL, reason="busy"): "0x60",
    }
    yield Case("ShadowStarved", "60m", {drawn: "0+3x60"} | refused)
    busy = refused | {series(dropped, MODEL, reason="busy"): "0+1x60"}
    yield Case("ShadowStarved", "60m", {drawn: "0+4x60"} | busy, MODEL, told, SHADOW)
    is_up = series("narrowgate_shadow_reference_up", MODEL)
    failures = series("narrowgate_shadow_reference_failures_total", MODEL)
    yield Case(
        "ReferenceDown",
        "60m",
        {is_up: "0x60", failures: "0+0.2x60"},
        MODEL,
        "The reference of chat at gw:8000 is down and failed 6 times in 30 minutes.",
        SHADOW,
    )
    yield Case("ReferenceDown", "60m", {is_up: "0x60", failures: "3x60"})  # on demand, at rest
    yield Case("ReferenceDown", "60m", {is_up: "1x60", failures: "0+0.2x60"})


def cost_cases() -> Iterator[Case]:
    """Yield those of what the shadow takes."""
    dashboard = "/d/narrowgate-shadow"
    budget = {series("narrowgate_shadow_budget_tokens_per_second", HERE): "200x90"}
    read = "narrowgate_shadow_reference_tokens_total"
    chat, code = series(read, MODEL), series(read, MODEL, model="code")
    yield Case(
        "ShadowOverBudget",
        "60m",
        budget | {chat: "0+12000x90", code: "0+6000x90"},
        HERE,
        "References at gw:8000 read 1.5 times their budget of tokens a second.",
        dashboard,
    )
    yield Case("ShadowOverBudget", "60m", budget | {chat: "0+8000x90", code: "0+6000x90"})
    cpu = series("narrowgate_shadow_cpu_seconds_total", MODEL)
    told = "References at gw:8000 use 0.9 cores."
    yield Case("ShadowExpensive", "80m", {cpu: "0+54x90"}, HERE, told, dashboard)
    yield Case("ShadowExpensive", "80m", {cpu: "0+42x90"})


def answer_cases() -> Iterator[Case]:
    """Yield those of answers and probes."""
    checks = "narrowgate_fidelity_output_checks_total"
    kind = VARIANT | {"check": "repetition"}
    failed = series(checks, kind, result="failed")
    passed = series(checks, kind, result="ok")
    yield Case(
        "OutputBroken",
        "60m",
        {failed: "0+1x60", passed: "0+3x60"},
        kind,
        f"25% of the drawn answers of {WHERE} failed the check repetition.",
        FIDELITY,
    )
    yield Case("OutputBroken", "60m", {failed: "0+1x60", passed: "0+19x60"})
    yield Case("OutputBroken", "60m", {failed: "0x50 1 2 3x9", passed: "0x60"})  # three answers
    read = series("narrowgate_fixed_texts_check", VARIANT, result="changed")
    yield Case(
        "ChangedSinceBuild",
        "3m",
        {read: "0x2 1x9"},
        VARIANT | {"result": "changed"},
        f"An engine of {WHERE} reads fixed texts further from what its build kept than a sound "
        "engine does: weights, kernels or the machine went wrong.",
        FIDELITY,
    )
    yield Case("ChangedSinceBuild", "9m", {read: "0x2 1x3 0x9"})  # it was restarted
    unread = series("narrowgate_fixed_texts_check", VARIANT, result="unread")
    yield Case("ChangedSinceBuild", "9m", {read: "0x20", unread: "1x20"})
    yield from overdue_cases()
    change = series("narrowgate_probe_change_nats", VARIANT)
    told = f"A first token's log-probability of {WHERE} has changed by "
    wrong = "nats on a fixed prompt: weights, kernels or the machine went wrong."
    is_up = series("narrowgate_engine_up", VARIANT)
    up = {is_up: "1x20"}
    changed = {change: "0x3 1.7x9"}
    yield Case("ProbeChanged", "10m", up | changed, VARIANT, f"{told}1.7 {wrong}", FIDELITY)
    yield Case("ProbeChanged", "12m", changed | {is_up: "1x9 0x9"})  # it was stopped
    nan = up | {change: "0x3 +Inf +Inf +Inf +Inf +Inf +Inf +Inf"}
    yield Case("ProbeChanged", "10m", nan, VARIANT, f"{told}+Inf {wrong}", FIDELITY)
    yield Case("ProbeChanged", "10m", up | {change: "0.04x20"})  # noise of other company
    yield Case("ProbeChanged", "10m", up | {change: "0x7 0.9 0x9"})  # one probe


def overdue_cases() -> Iterator[Case]:
    """Yield those of engines that do not read fixed texts; promtool's clock begins at 0."""
    due = series("narrowgate_fixed_texts_due_timestamp_seconds", VARIANT)
    words = (
        "ago, and has not: whether it still computes what its artifact was built to is not known."
    )
    told = f"An engine of {WHERE} should have read fixed texts 3h 1m 0s {words}"
    never = {due: "600x200"}
    yield Case("FixedTextsOverdue", "191m", never, VARIANT, told, FIDELITY)
    yield Case("FixedTextsOverdue", "190m", never)
    yield Case("FixedTextsOverdue", "200m", {due: "3600x60 7200x60 10800x90"})  # every hour
    yield Case("FixedTextsOverdue", "200m", {due: "600x150 12600x60"})  # it was read at last
    yield Case("FixedTextsOverdue", "200m", {due: "600x150 _x60"})  # it was stopped
    yield Case("FixedTextsOverdue", "200m", {due: "86400x210"})  # once a day
    yield Case("FixedTextsOverdue", "25m", {due: "-28800x25 5000x30"})  # the machine slept
