"""Cases of the alerts about engines."""

from collections.abc import Iterator

from tests.grafana.alert_case import HERE, MODEL, REPLICA, VARIANT, Case, series

ENGINES = "/d/narrowgate-engines"
OF_CHAT = ENGINES + "?var-model=chat"
WHERE = "chat@int4 at gw:8000"
STARTED = series("process_start_time_seconds", HERE)
UP = series("up", HERE)


def variant(active: str, up: str, state: str) -> dict[str, str]:
    """Return what is known of a variant in a state."""
    return {
        series("narrowgate_active_variant", VARIANT): active,
        series("narrowgate_engine_up", VARIANT): up,
        series("narrowgate_model_state", VARIANT, state=state): "1x30",
        series("narrowgate_model_state", VARIANT, state="ready"): up,
    }


def engine_cases() -> Iterator[Case]:
    """Yield them all."""
    gone = f"{WHERE} has failed or restarts again and again; its requests are refused, or go to a "
    for state in ("failed", "restarting"):
        yield Case(
            "NoEngineReady",
            "10m",
            variant("1x30", "1 1 1 0x20", state),
            VARIANT,
            gone + "fallback.",
            OF_CHAT,
        )
    # Half a minute failed, 20 s loading because somebody asked for it, and so on.
    again = {
        series("narrowgate_active_variant", VARIANT): "1x90",
        series("narrowgate_engine_up", VARIANT): "0x90",
        series("narrowgate_model_state", VARIANT, state="failed"): "1 1 1 0 0 " * 18,
        series("narrowgate_model_state", VARIANT, state="loading"): "0 0 0 1 1 " * 18,
    }
    yield Case("NoEngineReady", "13m", again, VARIANT, gone + "fallback.", OF_CHAT, every="10s")
    # It failed once, and its second load takes long.
    once = {series("narrowgate_model_state", VARIANT, state="failed"): "0 0 1 1 0x30"}
    yield Case("NoEngineReady", "10m", variant("1x30", "0x30", "loading") | once)
    yield Case("NoEngineReady", "10m", variant("1x30", "0x30", "stopped"))  # idle, on purpose
    yield Case("NoEngineReady", "10m", variant("0x30", "0x30", "failed"))  # serves nobody
    yield from stall_cases()
    yield from cache_cases()
    yield from residence_cases()


def stall_cases() -> Iterator[Case]:
    """Yield those of engines that stand still or end."""
    running = series("narrowgate_engine_sequences_running", REPLICA)
    tokens = series("narrowgate_engine_generated_tokens_total", REPLICA)
    restarts = "narrowgate_engine_restarts_total"
    stalls = series(restarts, VARIANT, reason="stall")
    told = f"1 engines of {WHERE} stood still in the last 15 minutes."
    silent = {running: "2x20", tokens: "0+50x10 500x10"}
    yield Case("EngineStalled", "17m", silent, VARIANT, told, OF_CHAT)
    # The first restart of its kind makes the series, at 1.
    first = {stalls: "_x10 1x10", UP: "1x20"}
    yield Case("EngineStalled", "17m", first, VARIANT, told, OF_CHAT)
    early = {stalls: "_x3 1x10", UP: "_x2 1x10", STARTED: "_x2 60x10"}
    yield Case("EngineStalled", "8m", early, VARIANT, told, OF_CHAT)
    yield Case("EngineStalled", "17m", {running: "0x20", tokens: "500x20"})  # nothing to do
    yield Case("EngineStalled", "17m", {running: "2x20", tokens: "0+1x20"})  # slow
    ended = {series(restarts, VARIANT, reason="exit"): "_x10 1x10", UP: "1x20"}
    yield Case("EngineStalled", "17m", ended)
    # An old count at a gateway that Prometheus has just begun to see.
    old = {stalls: "_x10 4x10", UP: "_x10 1x10", STARTED: "_x10 -90000x10"}
    yield Case("EngineStalled", "17m", old)
    exits = series(restarts, VARIANT, reason="exit")
    yield Case(
        "EngineRestartLoop",
        "20m",
        {exits: "_x8 1 1 2 2 3x10", UP: "1x20"},
        VARIANT,
        f"{WHERE} lost engines 3 times in 15 minutes; after seven losses in five minutes one is "
        "given up.",
        OF_CHAT,
    )
    yield Case("EngineRestartLoop", "20m", {exits: "_x8 1 1 2x12", UP: "1x20"})


def cache_cases() -> Iterator[Case]:
    """Yield those of the cache."""
    usage = series("narrowgate_engine_kv_cache_usage_ratio", REPLICA)
    waiting = series("narrowgate_engine_sequences_waiting", REPLICA)
    preempted = series("narrowgate_engine_preemptions_total", REPLICA)
    told = f"97% of the pages of {WHERE}, replica 0, are held."
    full = {usage: "0.97x30"}
    yield Case("KVCacheFull", "20m", full | {waiting: "4x30"}, REPLICA, told, OF_CHAT)
    thrash = {waiting: "0x30", preempted: "0+1x30"}
    yield Case("KVCacheFull", "20m", full | thrash, REPLICA, told, OF_CHAT)
    yield Case("KVCacheFull", "20m", full | {waiting: "0x30", preempted: "7x30"})  # just full
    yield Case("KVCacheFull", "20m", {usage: "0.8x30", waiting: "4x30"})


def residence_cases() -> Iterator[Case]:
    """Yield those of what is in memory."""
    swaps = "narrowgate_variant_swaps_total"
    failed = series(swaps, MODEL, result="failed")
    told = "1 swaps of chat at gw:8000 failed in 15 minutes."
    yield Case("SwapFailed", "20m", {failed: "_x15 1x5", UP: "1x20"}, MODEL, told, OF_CHAT)
    done = {series(swaps, MODEL, result="ok"): "_x15 1x5", UP: "1x20"}
    yield Case("SwapFailed", "20m", done)
    evictions = "narrowgate_evictions_total"
    one = series(evictions, VARIANT, reason="memory")
    two = series(evictions, VARIANT | {"model": "code"}, reason="memory")
    yield Case(
        "EvictionChurn",
        "60m",
        {one: "0+1x60", two: "0+1x60"},
        HERE,
        "gw:8000 stopped variants 60 times in 30 minutes to make room.",
        ENGINES,
    )
    idle = {series(evictions, VARIANT, reason="idle"): "0+1x60", one: "0x40 1x20"}
    yield Case("EvictionChurn", "60m", idle)
