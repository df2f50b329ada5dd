"""The gateway's own families of metrics: every one in one table."""

from typing import Literal, NamedTuple, get_args

from gateway.metrics.family import (
    DURATION_S,
    FIRST_TOKEN_S,
    INTER_TOKEN_S,
    MODEL,
    OTHER,
    VARIANT,
    Label,
    Type,
    Unit,
)

PREFIX = "narrowgate_"

RestartReason = Literal["exit", "stall"]

RejectionReason = Literal[
    "host",
    "invalid_key",
    "admin_only",
    "model_not_allowed",
    "request_rate",
    "token_rate",
    "queue_full",
    "queue_timeout",
    "process_full",
]

_QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_LOAD_S = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
_LAG_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_KL_NATS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10)
_NLL_NATS = (-1, -0.3, -0.1, -0.03, -0.01, 0, 0.01, 0.03, 0.1, 0.3, 1, 3)
_POSITION = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Family(NamedTuple):
    """One row of the table; the name goes without its prefix."""

    type: Type
    unit: Unit
    name: str
    labels: tuple[Label, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Return the names of its labels."""
        return tuple(label.name for label in self.labels)


# fmt: off
_RECIPE = Label("recipe", bound="the configured variants")
_SLICE = Label("slice", bound="26 at most, with those of the settings 94: all, length:*, turns:*, "
               "script:*, domain:*, format:*, sampling:*, position:*, metadata.*:*")
_OPERATION = Label("operation", ("chat", "completion", "response", "embedding", "tokenize"))
_OUTCOME = Label("outcome", ("ok", "client_abort", "timeout", "rejected", "shed", "error"))
_FINISH = Label("finish_reason", ("stop", "length", "tool_calls", "content_filter", "abort",
                                  "error", OTHER))
_ERROR = Label("error_type", bound="the codes of errors in the README, and _other")
_STATUS = Label("status_class", ("3xx", "4xx", "5xx"))
_REJECTION = Label("reason", get_args(RejectionReason))
_KEY = Label("key", bound="the names of the configured keys")
_PHASE = Label("phase", ("prefill", "decode", OTHER))
_STATE = Label("state", ("stopped", "loading", "ready", "restarting", "stopping", "failed"))
_EVICTION = Label("reason", ("memory", "idle"))
_RESTART = Label("reason", get_args(RestartReason))
_RESULT = Label("result", ("ok", "failed"))
_DROP = Label("reason", ("private", "unsupported", "unfinished", "no_capture", "empty", "too_long",
                         "rows", "budget", "queue_full", "busy", "timeout", "reference", "error",
                         "stopped"))
_ESTIMATOR = Label("estimator", ("topk", "exact"))
_AGREE = Label("agree", ("true", "false"))
_SIDE = Label("side", ("variant", "full"))
_CHECK = Label("check", ("empty", "repetition", "runs", "encoding", "json", "tool_call"))
_RUN = Label("result", ("compared", "unsupported", "too_many", "budget", "unscored", "busy",
                        "timeout", "error", "stopped"))
_RUN_CHECK = Label("check", (*_CHECK.values, "finish", "refusal"))
_TEXT = Label("text", bound="all, and the built-in texts: english, german, french, chinese, code, "
              "json, arithmetic")
_CHECKED = Label("result", ("changed", "unread", "other_numerics", "too_long", "not_kept", "ok"))
_VERDICT = Label("state", ("learning", "ok", "drift", "stale"))
_FROM, _TO = Label("from", bound="the variants of a ladder"), Label("to", bound="the same")
_STEP = Label("reason", ("drift", "return", "proven", "not_proven", "slice_drift", "slice_ok",
                         "restored", "ordered", "withdrawn", "broken"))
_ENDED = Label("result", ("promoted", "rolled_back", "withdrawn", "superseded", "failed"))


def _fact(name: str) -> Label:
    return Label(name, bound="one value of each variant")


_FACTS = tuple(_fact(name) for name in (
    "recipe_digest", "source_digest", "weight_bits", "base_dtype", "backend", "numerics",
    "kernels", "kv_dtype"))
_MV = (MODEL, VARIANT)
_MVR = (MODEL, VARIANT, _RECIPE)
_MVS = (MODEL, VARIANT, _SLICE)

FAMILIES: tuple[Family, ...] = (
    Family("histogram", "seconds", "request_duration_seconds", (*_MV, _OPERATION, _OUTCOME),
           "Time from the request's arrival to the end of its reply.", DURATION_S),
    Family("histogram", "seconds", "time_to_first_token_seconds", _MV,
           "Time from a streamed request's arrival to its first text.", FIRST_TOKEN_S),
    Family("histogram", "seconds", "inter_token_latency_seconds", _MV,
           "Time between two streamed events with text, usually one token each.", INTER_TOKEN_S),
    Family("histogram", "seconds", "time_per_output_token_seconds", _MV,
           "Mean time of a streamed answer's tokens after its first, one answer of two or more.",
           INTER_TOKEN_S),
    Family("counter", "requests", "requests_total", (*_MV, _OPERATION, _OUTCOME, _FINISH),
           "Requests that ended, whatever their outcome."),
    Family("counter", "requests", "request_errors_total", (MODEL, _ERROR, _STATUS),
           "Requests that ended in an error, also after the stream began."),
    Family("counter", "tokens", "prompt_tokens_total", _MV,
           "Prompt tokens, as counted by the engine; requests without a usage report add none."),
    Family("counter", "tokens", "generated_tokens_total", _MV,
           "Generated tokens, as counted by the engine; of a stream that broke off, its events."),
    Family("histogram", "tokens", "request_prompt_tokens", _MV,
           "Prompt tokens of a request that an engine answered.", _TOKENS),
    Family("histogram", "tokens", "request_generated_tokens", _MV,
           "Generated tokens of a request that an engine answered.", _TOKENS),
    Family("gauge", "requests", "requests_running", _MV,
           "Requests passed to an engine: running or waiting there."),
    Family("gauge", "requests", "requests_waiting", (MODEL,),
           "Requests that wait here for their turn at the model's engine."),
    Family("histogram", "seconds", "queue_seconds", (MODEL,),
           "Time that requests waited here for their turn, those that had to.", _QUEUE_S),
    Family("counter", "requests", "admission_rejections_total", (MODEL, _REJECTION),
           "Requests that were turned away before they reached an engine."),
    Family("counter", "requests", "key_requests_total", (_KEY,),
           "Requests let in, by the name of their key."),
    Family("counter", "tokens", "key_tokens_total", (_KEY,),
           "Tokens of prompts and answers, by the name of their key."),
    Family("counter", "count", "rate_store_failures_total", (),
           "Times that the shared store of rate limits failed and this process counted alone."),
    Family("counter", "requests", "client_disconnects_total", (MODEL, _PHASE),
           "Clients that left before the reply had ended."),
    Family("gauge", "state", "model_info", (*_MVR, *_FACTS),
           "What is served, always 1; joins other series."),
    Family("gauge", "bytes", "weights_bytes", _MVR,
           "Bytes of the live weights in memory."),
    Family("gauge", "bytes", "weights_uncompressed_bytes", _MVR,
           "Bytes of the full model's weights."),
    Family("gauge", "bytes", "bytes_per_weight", _MVR,
           "Bytes that one weight takes on average in the live model, scales counted in."),
    Family("gauge", "bytes", "kv_bytes_per_token", _MVR,
           "Bytes that one token takes in the live cache of keys and values."),
    Family("gauge", "state", "engine_up", _MV,
           "1 while the engine is ready, else 0."),
    Family("gauge", "state", "model_state", (*_MV, _STATE),
           "1 for the state that the model is in, 0 for every other state."),
    Family("gauge", "state", "active_variant", _MV,
           "1 for the variant that serves the model's plain name, 0 for the others."),
    Family("gauge", "ratio", "canary_traffic_ratio", _MV,
           "Share of the requests for the model's plain name that the variant takes on trial."),
    Family("gauge", "count", "replicas_ready", _MV,
           "Engines of the variant that are ready."),
    Family("gauge", "bytes", "reserved_memory_bytes", _MV,
           "Memory that the variant's engines hold, or that was set aside for them if more."),
    Family("gauge", "bytes", "memory_budget_bytes", (),
           "What all engines together may hold, if there is a budget."),
    Family("counter", "count", "evictions_total", (*_MV, _EVICTION),
           "Variants that were stopped, to make room (memory) or after their time (idle)."),
    Family("counter", "count", "variant_swaps_total", (MODEL, _RESULT),
           "Changes of the active variant."),
    Family("counter", "requests", "request_retries_total", _MV,
           "Attempts at another engine after this variant's engine had failed a request."),
    Family("gauge", "state", "build_info", (_fact("version"),),
           "The version of this gateway, always 1."),
    Family("counter", "count", "engine_restarts_total", (*_MV, _RESTART),
           "Restarts of an engine that ended or stalled."),
    Family("histogram", "seconds", "model_load_seconds", (MODEL, _RECIPE),
           "Time to prepare a model and to start its engine.", _LOAD_S),
    Family("gauge", "ratio", "shadow_sample_ratio", (MODEL,),
           "Share of the model's requests that is drawn to be scored."),
    Family("gauge", "tokens", "shadow_budget_tokens_per_second", (),
           "Tokens a second that references may read in the long run."),
    Family("counter", "requests", "shadow_candidates_total", (MODEL,),
           "Requests drawn to be scored; each is scored, dropped for a reason, or under way."),
    Family("counter", "requests", "shadow_scored_total", (MODEL,),
           "Candidates that the reference has scored."),
    Family("counter", "requests", "shadow_dropped_total", (MODEL, _DROP),
           "Candidates that were not scored, and why."),
    Family("gauge", "requests", "shadow_in_flight", (MODEL,),
           "Candidates under way."),
    Family("gauge", "requests", "shadow_queue_length", (),
           "Captured replies that wait for the reference."),
    Family("histogram", "seconds", "shadow_lag_seconds", (MODEL,),
           "Time from the capture of a reply to its score.", _LAG_S),
    Family("counter", "tokens", "shadow_reference_tokens_total", (MODEL,),
           "Tokens that references read or, in free runs, wrote."),
    Family("counter", "seconds", "shadow_cpu_seconds_total", (MODEL,),
           "Processor time of references on this machine."),
    Family("counter", "count", "shadow_yields_total", (MODEL,),
           "Scorings that were broken off because requests came."),
    Family("gauge", "state", "shadow_reference_up", (MODEL,),
           "1 while the reference takes texts, else 0."),
    Family("counter", "count", "shadow_reference_failures_total", (MODEL,),
           "Starts and scorings that failed."),
    Family("histogram", "nats", "fidelity_token_kl_divergence_nats", (*_MV, _ESTIMATOR),
           "KL divergence of the full model from the variant, mean of a request's tokens; variant "
           "full is the noise floor.", _KL_NATS),
    Family("histogram", "nats", "fidelity_nll_delta_nats", _MV,
           "How much less likely the full model finds the served tokens, mean of a request.",
           _NLL_NATS),
    Family("histogram", "tokens", "fidelity_first_divergence_tokens", _MV,
           "Token of an answer at which the likeliest tokens first differ, those where they do.",
           _POSITION),
    Family("counter", "tokens", "fidelity_tokens_total", (*_MVS, _AGREE),
           "Scored tokens, by whether both models find the same one the likeliest."),
    Family("counter", "requests", "fidelity_requests_total", _MVS,
           "Scored requests with tokens in the slice."),
    Family("counter", "nats", "fidelity_kl_nats_total", (*_MVS, _ESTIMATOR),
           "Sum of the requests' mean KL divergences."),
    Family("counter", "nats", "fidelity_kl_bound_nats_total", _MVS,
           "Sum of the same over the likeliest tokens and a rest, where scores are exact."),
    Family("counter", "nats squared", "fidelity_kl_nats_squared_total", (*_MVS, _ESTIMATOR),
           "Sum of their squares, for intervals."),
    Family("counter", "nats", "fidelity_nll_nats_total", (*_MVS, _SIDE),
           "What the served tokens cost the variant and the full model, minus log-probability."),
    Family("counter", "count", "fidelity_output_checks_total", (*_MV, _CHECK, _RESULT),
           "Checks of drawn answers alone: their form, and signs of a broken model."),
    Family("counter", "count", "fidelity_free_runs_total", (*_MV, _RUN),
           "Scored requests that the full model was to answer itself, by what became of it."),
    Family("counter", "count", "fidelity_free_run_checks_total",
           (*_MV, _SIDE, _RUN_CHECK, _RESULT),
           "Checks of both answers of a compared free run, those that apply to both; finish: it "
           "ended by itself, refusal: it does not begin by declining."),
    Family("counter", "tokens", "fidelity_free_run_tokens_total", (*_MV, _SIDE),
           "Tokens of both answers of compared free runs, up to the limit of the full model's."),
    Family("gauge", "state", "drift_state", _MVS,
           "The verdict: 0 learning, 1 ok, 2 drift, 3 stale."),
    Family("gauge", "count", "drift_e_value_log10", _MVS,
           "Logarithm of the evidence that the divergence rose above the tolerance."),
    Family("gauge", "nats", "drift_mean_lower_nats", _MVS,
           "Lower bound of the mean KL divergence, valid at all times; begins anew with a drift."),
    Family("gauge", "nats", "drift_mean_upper_nats", _MVS,
           "Upper bound of the mean KL divergence, valid at all times; begins anew with a drift."),
    Family("gauge", "nats", "drift_alarm_mean_nats", _MVS,
           "Mean KL divergence when drift was shown, of what was scored since the tests began; "
           "there while the verdict is drift, unless that is from before this start."),
    Family("gauge", "nats", "drift_tolerance_nats", _MVS,
           "Mean KL divergence up to which the slice counts as undamaged."),
    Family("gauge", "state", "slice_routed", _MVS,
           "1 for the variant that answers most requests of the slice in place of the active one; "
           "absent where the active one does."),
    Family("counter", "count", "verdict_changes_total", (*_MVS, _VERDICT),
           "Changes of a verdict, by what it became."),
    Family("counter", "count", "ladder_steps_total", (MODEL, _FROM, _TO, _STEP),
           "Steps on a model's ladder that were done, and why."),
    Family("counter", "count", "canaries_ended_total", (*_MV, _ENDED),
           "Canaries that operators asked for, by how they ended."),
    Family("counter", "count", "probes_total", (*_MV, _RESULT),
           "One-token probes of fixed prompts."),
    Family("gauge", "nats", "probe_change_nats", _MV,
           "Largest change of a probed log-probability since the engine became ready."),
    Family("gauge", "state", "fixed_texts_check", (*_MV, _CHECKED),
           "1 for what became of the variant's engines reading fixed texts, the worst of them, 0 "
           "for every other result."),
    Family("gauge", "seconds", "fixed_texts_due_timestamp_seconds", _MV,
           "When the variant's engines are to have read fixed texts again, the first of them, in "
           "Unix time; in the past where they have not."),
    Family("gauge", "nats", "fixed_text_distance_nats", (*_MV, _TEXT),
           "How far the engine's log-probabilities of a fixed text are from what its build kept."),
    Family("gauge", "nats", "fixed_text_limit_nats", (*_MV, _TEXT),
           "How far a sound engine's may be."),
)
# fmt: on
