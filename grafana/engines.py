"""Engines: whether they get on, how full they are, what their steps take."""

from grafana import units
from grafana.charts import lines, tile, timeline
from grafana.colours import BAD, GOOD, NEUTRAL, WARNING, Json, at_most
from grafana.dashboard import Dashboard, Row
from grafana.panel import Panel, Query
from grafana.query import (
    gained,
    happened,
    highest,
    mean,
    quantile,
    rate,
    ratio,
    recent,
    series,
    total,
)

NOT_LOADED = "No engine is loaded"
NO_STEPS = "No engine tells its steps"
NO_TRAFFIC = "No traffic"
_MV, _MVR = "model, variant", "model, variant, replica"
_NAMED, _REPLICA = "{{model}}@{{variant}}", "{{model}}@{{variant}} {{replica}}"
STATES = (
    ("stopped", "text"),
    ("loading", NEUTRAL),
    ("ready", GOOD),
    ("restarting", WARNING),
    ("stopping", "purple"),
    ("failed", BAD),
)


def _silence() -> str:
    """Return how long engines that run sequences have chosen no token."""
    last, running = series("engine_last_token_timestamp_seconds"), "engine_sequences_running"
    on = f"on (instance, {_MVR})"
    # Until the scrape, not until now: that a sample grows old is no silence. An engine that has
    # just chosen a token may have done so after the time of the scrape.
    ago = f"clamp_min(timestamp({last}) - ({last} > 0), 0)"
    return f"max by ({_MVR}) ({ago} and {on} ({series(running)} > 0))"


def _state() -> str:
    """Return the number of the state that each variant is in, in the order of STATES."""
    by = "model, variant, instance"
    selectors = (series("model_state", f'state="{state}"') for state, _ in STATES)
    return " or ".join(
        f"{index} * max by ({by}) ({selector} == 1)" for index, selector in enumerate(selectors)
    )


def _states() -> Json:
    return {
        "type": "value",
        "options": {
            str(index): {"text": state, "color": colour, "index": index}
            for index, (state, colour) in enumerate(STATES)
        },
    }


def _tiles() -> tuple[Panel, ...]:
    return (
        tile(
            "Engines ready",
            "Engines of each variant that are ready (narrowgate_replicas_ready). 0 of a variant "
            "that should serve: see its state below, and `GET /v1/models` for the reason.",
            units.COUNT,
            "No engine is ready",
            Query(total("replicas_ready", _MV) + " > 0", _NAMED),
            width=6,
        ),
        tile(
            "Longest silence",
            "Time since the last token of an engine that runs sequences "
            "(narrowgate_engine_last_token_timestamp_seconds, narrowgate_engine_sequences_running)"
            ". Above a minute it stands still: the gateway restarts it after stall_timeout_s.",
            units.SECONDS,
            "Nothing runs",
            Query(f"max by (model, variant) ({_silence()})", _NAMED),
            width=6,
            decimals=1,
            thresholds=at_most(20, 60),
        ),
        tile(
            "Restarts",
            "Engines that ended or stalled in the time range (narrowgate_engine_restarts_total). "
            "Again and again: read the engine's last log lines; exit with much memory in use is "
            "often the kernel's out-of-memory killer.",
            units.COUNT,
            "None",
            Query(happened("engine_restarts_total", _MV), _NAMED),
            width=6,
            decimals=0,
            thresholds=at_most(1, 3),
        ),
        tile(
            "Prompts found in cache",
            "Share of prompt tokens that did not have to be read again, in the time range "
            "(narrowgate_engine_prefix_cache_hits_total, "
            "narrowgate_engine_prefix_cache_queries_total). Low with long common prompts: replicas "
            "too many, or a cache too small.",
            units.SHARE,
            NO_TRAFFIC,
            Query(
                ratio(
                    gained("engine_prefix_cache_hits_total", _MV),
                    gained("engine_prefix_cache_queries_total", _MV),
                ),
                _NAMED,
            ),
            width=6,
            decimals=0,
        ),
    )


def _progress() -> tuple[Panel, ...]:
    return (
        timeline(
            "States",
            "The state of each variant (narrowgate_model_state). restarting for long, or failed: "
            "`POST /admin/models/NAME/load` tries again at once; the log says why it failed.",
            "No model is configured",
            Query(_state(), "{{model}}@{{variant}} {{instance}}"),
            mappings=(_states(),),
        ),
        lines(
            "Silence",
            "Time since the last token while sequences run, by engine "
            "(narrowgate_engine_last_token_timestamp_seconds, narrowgate_engine_sequences_running)"
            ". A saw with small teeth is healthy; a ramp is an engine that stands still.",
            units.SECONDS,
            "Nothing runs",
            Query(_silence(), _REPLICA),
            width=12,
        ),
        lines(
            "Restarts by reason",
            "Engines that ended or stalled lately, by reason (narrowgate_engine_restarts_total). "
            "exit: it crashed or was killed; stall: it answered no probe.",
            units.COUNT,
            "No engine was restarted",
            Query(recent("engine_restarts_total", f"{_MV}, reason"), _NAMED + " {{reason}}"),
        ),
        lines(
            "Time to load",
            "From the wish to a ready engine, median and mean (narrowgate_model_load_seconds). "
            "Long for a first load: the artifact was built; later ones should be short.",
            units.SECONDS,
            "Nothing was loaded lately",
            Query(quantile(0.5, "model_load_seconds", "model, recipe"), "{{model}} {{recipe}} p50"),
            Query(mean("model_load_seconds", "model, recipe"), "{{model}} {{recipe}} mean"),
        ),
        lines(
            "Sequences that ended",
            "Each second, by reason (narrowgate_engine_sequences_total). abort: clients leave, or "
            "the gateway's limits end them; error: read the engine's log.",
            units.REQUESTS_PER_SECOND,
            NO_TRAFFIC,
            Query(rate("engine_sequences_total", "finished_reason"), "{{finished_reason}}"),
            stacked=True,
        ),
    )


def _load() -> tuple[Panel, ...]:
    return (
        lines(
            "Running and waiting",
            "Sequences with cache pages, and those that wait for some, by engine "
            "(narrowgate_engine_sequences_running, narrowgate_engine_sequences_waiting). Waiting "
            "with a full cache: more memory or a smaller cache; without: larger batches.",
            units.REQUESTS,
            NOT_LOADED,
            Query(highest("engine_sequences_running", _MVR), _REPLICA + " running"),
            Query(highest("engine_sequences_waiting", _MVR), _REPLICA + " waiting"),
            dashed=("/running$/",),
        ),
        lines(
            "Cache in use",
            "Share of the cache's pages that sequences hold (narrowgate_engine_kv_cache_usage_"
            "ratio). Near 1 sequences wait or give their pages up.",
            units.SHARE,
            NOT_LOADED,
            Query(highest("engine_kv_cache_usage_ratio", _MVR), _REPLICA),
            highest=1,
        ),
        lines(
            "Pages",
            "Pages that the cache holds, and those in use (narrowgate_engine_kv_cache_pages, "
            "narrowgate_engine_kv_cache_usage_ratio). Few pages: raise the engine's cache memory.",
            units.COUNT,
            NO_STEPS,
            Query(highest("engine_kv_cache_pages", _MVR), _REPLICA + " all"),
            Query(
                f"max by ({_MVR}) ({series('engine_kv_cache_pages')} * "
                f"{series('engine_kv_cache_usage_ratio')})",
                _REPLICA + " in use",
            ),
            dashed=("/all$/",),
        ),
    )


def _steps() -> tuple[Panel, ...]:
    step = "engine_step_seconds"
    return (
        lines(
            "Time of a step",
            "One step of the model for all its sequences, median and 95th percentile "
            "(narrowgate_engine_step_seconds). Each running stream waits this long for a token: "
            "long steps with few tokens mean busy cores.",
            units.SECONDS,
            NO_STEPS,
            Query(quantile(0.5, step, _MV), _NAMED + " p50"),
            Query(quantile(0.95, step, _MV), _NAMED + " p95"),
            dashed=("/p50$/",),
        ),
        lines(
            "Tokens a step",
            "Mean number of tokens that a step reads or writes (narrowgate_engine_step_tokens). "
            "About 1 under load: requests do not come together; hundreds: long prompts are read.",
            units.TOKENS,
            NO_STEPS,
            Query(mean("engine_step_tokens", _MV), _NAMED),
        ),
        lines(
            "Gave pages up",
            "Sequences each second that gave their pages to others and must be read again "
            "(narrowgate_engine_preemptions_total). Anything steady is wasted work: give the cache "
            "more memory, or let fewer run at once.",
            units.EVENTS_PER_SECOND,
            NOT_LOADED,
            Query(rate("engine_preemptions_total", _MV), _NAMED),
        ),
    )


def dashboard() -> Dashboard:
    """Return the dashboard of engines."""
    return Dashboard(
        uid="narrowgate-engines",
        title="Narrowgate / Engines",
        description="Whether engines get on, how full they are, and what their steps take.",
        rows=(
            Row("Now", _tiles()),
            Row("Progress", _progress()),
            Row("Cache and queue", _load()),
            Row("Steps", _steps()),
        ),
    )
