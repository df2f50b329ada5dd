"""What engines say of themselves: every family that is passed on, and its name at vLLM."""

from typing import NamedTuple

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

ENGINE_PREFIX = "narrowgate_engine_"

_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)
_STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class EngineFamily(NamedTuple):
    """One row of what engines say; ``vllm`` is its name there after ``vllm:``, if it has one."""

    type: Type
    unit: Unit
    name: str
    vllm: str | None
    help: str
    buckets: tuple[float, ...] = ()
    labels: tuple[Label, ...] = ()
    """Beside :data:`ENGINE_LABELS`."""


# fmt: off
_ENDING = Label("finished_reason", ("stop", "length", "abort", "error", OTHER))
_REPLICA = Label("replica", bound="0 to the configured number less 1")

ENGINE_LABELS = (MODEL, VARIANT, _REPLICA)
"""Of each series that the gateway passes on from an engine."""

RUNNING = EngineFamily("gauge", "requests", "sequences_running", "num_requests_running",
                       "Sequences that hold cache pages.")
WAITING = EngineFamily("gauge", "requests", "sequences_waiting", "num_requests_waiting",
                       "Sequences that wait for pages or for others to end.")
CACHE_USAGE = EngineFamily("gauge", "ratio", "kv_cache_usage_ratio", "kv_cache_usage_perc",
                           "Share of the cache's pages that sequences hold, 0 to 1.")
PAGES = EngineFamily("gauge", "count", "kv_cache_pages", None,
                     "Pages that the cache's memory holds.")
LAST_TOKEN = EngineFamily("gauge", "seconds", "last_token_timestamp_seconds", None,
                          "When the last token was chosen, in seconds since 1970; 0 before any.")
PREFIX_QUERIES = EngineFamily("counter", "tokens", "prefix_cache_queries_total",
                              "prefix_cache_queries_total",
                              "Prompt tokens that were looked up among earlier ones.")
PREFIX_HITS = EngineFamily("counter", "tokens", "prefix_cache_hits_total",
                           "prefix_cache_hits_total",
                           "Prompt tokens that did not have to be read again.")
PREEMPTIONS = EngineFamily("counter", "count", "preemptions_total", "num_preemptions_total",
                           "Sequences that gave their pages up and read their tokens again.")
PROMPT = EngineFamily("counter", "tokens", "prompt_tokens_total", "prompt_tokens_total",
                      "Prompt tokens of ended sequences.")
GENERATED = EngineFamily("counter", "tokens", "generated_tokens_total", "generation_tokens_total",
                         "Tokens that were chosen.")
ENDED = EngineFamily("counter", "requests", "sequences_total", "request_success_total",
                     "Sequences that ended: stop, length, abort or error.", labels=(_ENDING,))
QUEUE = EngineFamily("histogram", "seconds", "queue_seconds", "request_queue_time_seconds",
                     "Time from a sequence's arrival to its first step.", DURATION_S)
FIRST_TOKEN = EngineFamily("histogram", "seconds", "time_to_first_token_seconds",
                           "time_to_first_token_seconds",
                           "Time from a sequence's arrival to its first token.", FIRST_TOKEN_S)
INTER_TOKEN = EngineFamily("histogram", "seconds", "inter_token_latency_seconds",
                           "inter_token_latency_seconds",
                           "Time between two tokens of a sequence.", INTER_TOKEN_S)
DURATION = EngineFamily("histogram", "seconds", "sequence_seconds", "e2e_request_latency_seconds",
                        "Time from a sequence's arrival to its end.", DURATION_S)
STEP = EngineFamily("histogram", "seconds", "step_seconds", None,
                    "Time of one step of the model for all sequences.", _STEP_S)
STEP_TOKENS = EngineFamily("histogram", "tokens", "step_tokens", "iteration_tokens_total",
                           "Tokens of one step.", _STEP_TOKENS)
# fmt: on

ENGINE_FAMILIES: tuple[EngineFamily, ...] = (
    *(RUNNING, WAITING, CACHE_USAGE, PAGES, LAST_TOKEN, PREFIX_QUERIES, PREFIX_HITS, PREEMPTIONS),
    *(PROMPT, GENERATED, ENDED, QUEUE, FIRST_TOKEN, INTER_TOKEN, DURATION, STEP, STEP_TOKENS),
)
