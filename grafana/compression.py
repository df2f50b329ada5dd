"""Compression: how small, as what, and how fast against the full model."""

from grafana import units
from grafana.charts import lines, tile
from grafana.dashboard import Dashboard, Row
from grafana.panel import Panel, Query
from grafana.query import against_full, happened, highest, mean, quantile, rate, ratio, total
from grafana.table import table

NOT_LOADED = "No engine is loaded"
NO_TRAFFIC = "No traffic"
NO_FULL_TRAFFIC = "No traffic on full: ask for model@full"
COMPRESSED, FULL = 'variant!="full"', 'variant="full"'
_MV = "model, variant"
_NAMED = "{{model}}@{{variant}}"
_FACTS = (
    "model, variant, recipe, weight_bits, base_dtype, numerics, kernels, kv_dtype, backend, "
    "recipe_digest, source_digest"
)


def memory_saved() -> str:
    """Return the bytes that each compressed variant's weights do not take."""
    before = highest("weights_uncompressed_bytes", _MV, COMPRESSED)
    return f"{before} - {highest('weights_bytes', _MV, COMPRESSED)}"


def _size() -> tuple[Panel, ...]:
    live = highest("weights_bytes", _MV, COMPRESSED)
    before = highest("weights_uncompressed_bytes", _MV, COMPRESSED)
    return (
        tile(
            "Smaller by",
            "Bytes of the full model's weights over the bytes of the live ones "
            "(narrowgate_weights_uncompressed_bytes, narrowgate_weights_bytes). About 1: the "
            "recipe was not applied, or most of the model is kept as it was; see the table.",
            units.TIMES,
            NOT_LOADED,
            Query(ratio(before, live), _NAMED),
            width=6,
            decimals=2,
        ),
        tile(
            "Memory saved",
            "Bytes that the weights of loaded variants do not take "
            "(narrowgate_weights_uncompressed_bytes less narrowgate_weights_bytes). Less than "
            "expected: see which layers the recipe keeps.",
            units.BYTES,
            NOT_LOADED,
            Query(memory_saved(), _NAMED),
            width=6,
            decimals=1,
        ),
        tile(
            "Bits per weight",
            "What one weight takes on average in the live model, scales counted in "
            "(narrowgate_bytes_per_weight times 8). More than the recipe's bits: layers that were "
            "kept, or small groups with many scales.",
            units.BITS,
            NOT_LOADED,
            Query(highest("bytes_per_weight", _MV) + " * 8", _NAMED),
            width=6,
            decimals=2,
        ),
        tile(
            "Cache per token",
            "Bytes that one token takes in the live cache of keys and values "
            "(narrowgate_kv_bytes_per_token). Large: a recipe with a smaller cache holds more "
            "sequences in the same memory.",
            units.BYTES,
            NOT_LOADED,
            Query(highest("kv_bytes_per_token", _MV), _NAMED),
            width=6,
            decimals=1,
        ),
    )


def _memory() -> tuple[Panel, ...]:
    return (
        lines(
            "Weights",
            "Bytes of the live weights, and of the full model's "
            "(narrowgate_weights_bytes, narrowgate_weights_uncompressed_bytes). A step upwards: "
            "another variant was loaded; the marks say when.",
            units.BYTES,
            NOT_LOADED,
            Query(highest("weights_bytes", _MV), _NAMED),
            Query(highest("weights_uncompressed_bytes", "model"), "{{model}} uncompressed"),
            width=12,
            dashed=("/uncompressed$/",),
        ),
        lines(
            "Memory of engines",
            "What each variant's engines hold or have set aside, weights, cache and all "
            "(narrowgate_reserved_memory_bytes). Far above the weights: the cache is large; make "
            "it smaller, or compress it.",
            units.BYTES,
            NOT_LOADED,
            Query(total("reserved_memory_bytes", _MV), _NAMED),
            width=12,
        ),
    )


def _applied() -> tuple[Panel, ...]:
    return (
        table(
            "Requested and applied",
            "What each variant's recipe asks for and what the live engine says it runs "
            "(narrowgate_model_info, narrowgate_bytes_per_weight). Kernels or numerics that the "
            "recipe did not mean: `narrowgate doctor` says why they were chosen.",
            units.BITS,
            NOT_LOADED,
            Query(highest("model_info", _FACTS), unit=units.STATE),
            Query(highest("bytes_per_weight", "model, variant, recipe") + " * 8", "", "bits"),
            sorted_by="model",
            descending=False,
            first=("model", "variant", "recipe", "numerics", "kernels", "kv_dtype", "backend"),
        ),
    )


def _speed() -> tuple[Panel, ...]:
    first, gap = "time_to_first_token_seconds", "inter_token_latency_seconds"
    return (
        lines(
            "Time to first token",
            "Median by variant (narrowgate_time_to_first_token_seconds). Compressed slower than "
            "full: prompts are read in large products, where 4-bit kernels gain least.",
            units.SECONDS,
            NO_TRAFFIC,
            Query(quantile(0.5, first, _MV), _NAMED),
        ),
        lines(
            "Time between tokens",
            "Median by variant (narrowgate_inter_token_latency_seconds). This is where fewer bytes "
            "should show; if not, `narrowgate doctor` times the kernels of this machine.",
            units.SECONDS,
            NO_TRAFFIC,
            Query(quantile(0.5, gap, _MV), _NAMED),
        ),
        lines(
            "Tokens a stream",
            "Tokens each second that one client sees, the inverse of the mean time between them "
            "(narrowgate_inter_token_latency_seconds). It falls when many streams share an engine.",
            units.TOKENS_PER_SECOND,
            NO_TRAFFIC,
            Query(ratio(rate(gap + "_count", _MV), rate(gap + "_sum", _MV)), _NAMED),
        ),
        lines(
            "Tokens of all streams",
            "Tokens generated each second by variant (narrowgate_generated_tokens_total). It "
            "follows the traffic that a variant gets, so compare it under equal load only.",
            units.TOKENS_PER_SECOND,
            NO_TRAFFIC,
            Query(rate("generated_tokens_total", _MV), _NAMED),
        ),
        lines(
            "First token, times full",
            "Mean time to the first token over that of the full model "
            "(narrowgate_time_to_first_token_seconds). Below 1 is faster than full. Above: see "
            "whether the full model gets less traffic or shorter prompts.",
            units.TIMES,
            NO_FULL_TRAFFIC,
            Query(against_full(mean(first, _MV, COMPRESSED), mean(first, "model", FULL)), _NAMED),
        ),
        lines(
            "Next token, times full",
            "Mean time between tokens over that of the full model "
            "(narrowgate_inter_token_latency_seconds). Below 1 is faster than full. Above: the "
            "compressed kernels do not pay on this machine under this load.",
            units.TIMES,
            NO_FULL_TRAFFIC,
            Query(against_full(mean(gap, _MV, COMPRESSED), mean(gap, "model", FULL)), _NAMED),
        ),
    )


def _canaries() -> tuple[Panel, ...]:
    return (
        lines(
            "Canary's share",
            "Share of the requests for a model's plain name that a variant on trial takes "
            "(narrowgate_canary_traffic_ratio). A verdict or its time limit ends it; "
            "DELETE /admin/models/MODEL/canary ends it at once.",
            units.SHARE,
            NOT_LOADED,
            Query(highest("canary_traffic_ratio", _MV), _NAMED),
            width=12,
        ),
        tile(
            "Canaries ended",
            "Canaries that operators asked for in the time range, by how they ended "
            "(narrowgate_canaries_ended_total). rolled_back: GET /admin/models/MODEL/canary says "
            "what spoke against it.",
            units.COUNT,
            "No canary has ended",
            Query(
                happened("canaries_ended_total", "model, variant, result"), _NAMED + " {{result}}"
            ),
            width=12,
            height=8,
        ),
    )


def dashboard() -> Dashboard:
    """Return the dashboard of sizes and speeds."""
    return Dashboard(
        uid="narrowgate-compression",
        title="Narrowgate / Compression",
        description="What compression saves, what was really applied, and what it does to speed.",
        rows=(
            Row("Size", (*_size(), *_memory())),
            Row("Recipe", _applied()),
            Row("Speed against the full model", _speed()),
            Row("New recipes on trial", _canaries()),
        ),
    )
