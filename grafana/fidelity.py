"""Fidelity: how far what is served is from what the full model would say."""

from collections.abc import Callable

from grafana import units
from grafana.charts import lines, tile, timeline
from grafana.colours import at_least, at_most, verdicts
from grafana.dashboard import Dashboard, Row
from grafana.judgement import all_traffic, worst_slices, worst_verdict
from grafana.panel import Panel, Query
from grafana.query import gained, happened, highest, quantile, rate, ratio, root_mean_square, series
from grafana.table import coloured, table
from grafana.variable import slices

NOT_SCORED = "Nothing scored: is shadow.rate 0?"
NO_VERDICT = "No verdict: is shadow.rate 0?"
_MV = "model, variant"
_MVS = "model, variant, slice"
_NAMED = "{{model}}@{{variant}}"
_SLICED = "{{model}}@{{variant}} {{slice}}"
_ALL = 'slice="all"'
_ALL_TEXTS = 'text="all"'
_CHOSEN = 'slice=~"$slice"'


def _less_likely(gain: Callable[..., str], by: str, matcher: str) -> str:
    """Return how much less likely the full model finds the served tokens, in nats a token."""
    cost, tokens = "fidelity_nll_nats_total", gain("fidelity_tokens_total", by, matcher)
    variant, full = (gain(cost, by, matcher, f'side="{side}"') for side in ("variant", "full"))
    return f"({full} - {variant}) / ({tokens} > 0)"


def _routed() -> str:
    """Return 1 for variants that answer a slice in place of the active one, else 0."""
    state = highest("drift_state", _MVS)
    return f"{highest('slice_routed', _MVS)} or 0 * {state}"


def _tiles() -> tuple[Panel, ...]:
    agreed = gained("fidelity_tokens_total", _MV, _ALL, 'agree="true"')
    scored = gained("fidelity_tokens_total", _MV, _ALL)
    return (
        tile(
            "Verdict",
            "What the sequential test says of each variant's whole traffic now "
            "(narrowgate_drift_state). drift: swap to a safer variant with the admin API. stale: "
            "see the dashboard Shadow. learning: wait for more scored requests.",
            units.STATE,
            NO_VERDICT,
            Query(worst_verdict(is_active_only=False), _NAMED),
            width=6,
            mappings=(verdicts(),),
        ),
        tile(
            "Mean over tolerance",
            "Mean KL divergence of all traffic in the time range over its tolerance "
            "(narrowgate_fidelity_kl_nats_total, narrowgate_fidelity_requests_total, "
            "narrowgate_drift_tolerance_nats). The verdict says whether that is proven: swap to a "
            "safer variant where it is drift.",
            units.SHARE,
            NO_VERDICT,
            Query(all_traffic(), _NAMED),
            width=6,
            decimals=0,
            thresholds=at_most(0.7, 1),
        ),
        tile(
            "Top-1 agreement",
            "Share of scored tokens at which both models find the same token the likeliest, in "
            "the time range (narrowgate_fidelity_tokens_total). It depends on the model: hold it "
            "against what `narrowgate compare` printed for the recipe.",
            units.SHARE,
            NOT_SCORED,
            Query(ratio(agreed, scored), _NAMED),
            width=6,
            decimals=1,
        ),
        tile(
            "Perplexity ratio",
            "Perplexity of the served text under the full model over that under the variant, in "
            "the time range (narrowgate_fidelity_nll_nats_total, narrowgate_fidelity_tokens_total"
            "). A little above 1 is usual: a model likes its own text best. Growing: see the "
            "slices.",
            units.TIMES,
            NOT_SCORED,
            Query(f"exp({_less_likely(gained, _MV, _ALL)})", _NAMED),
            width=6,
            decimals=3,
        ),
    )


def _slices() -> tuple[Panel, ...]:
    counted = "fidelity_requests_total"
    # The first scores of a slice are no rise yet.
    agreed = happened("fidelity_tokens_total", _MVS, 'agree="true"')
    return (
        table(
            "Slices, worst first",
            "Each slice's verdict, its mean KL divergence in the time range over its tolerance, "
            "the bounds of the mean since the last alarm, evidence, and 1 where another variant "
            "than the active one answers it (narrowgate_slice_routed, narrowgate_drift_state, "
            "narrowgate_fidelity_kl_nats_total, narrowgate_drift_mean_lower_nats, "
            "narrowgate_drift_mean_upper_nats, narrowgate_drift_tolerance_nats, "
            "narrowgate_drift_e_value_log10, narrowgate_fidelity_requests_total, "
            "narrowgate_fidelity_tokens_total). One slice in drift and the rest ok: protect what "
            "it needs in the recipe, or pin it to a safer variant.",
            units.NATS,
            NO_VERDICT,
            Query(highest("drift_state", _MVS), "", "verdict", units.STATE),
            Query(worst_slices(), "", "mean / tolerance", units.SHARE),
            Query(highest("drift_mean_lower_nats", _MVS), "", "lower"),
            Query(highest("drift_mean_upper_nats", _MVS), "", "upper"),
            Query(highest("drift_tolerance_nats", _MVS), "", "tolerance"),
            Query(highest("drift_e_value_log10", _MVS), "", "evidence (log10)", units.COUNT),
            Query(ratio(agreed, happened("fidelity_tokens_total", _MVS)), "", "same", units.SHARE),
            Query(happened(counted, _MVS), "", "scored in range", units.COUNT),
            Query(_routed(), "", "routed here", units.STATE),
            sorted_by="mean / tolerance",
            first=("model", "variant", "slice"),
            cells={
                "verdict": coloured(mappings=(verdicts(),)),
                "mean / tolerance": coloured(thresholds=at_most(0.7, 1)),
            },
            height=11,
        ),
        timeline(
            "Verdicts over time",
            "The verdict of each chosen slice (narrowgate_drift_state); choose slices at the top. "
            "A row that turns red says when it began: look for a mark of a swap or restart there.",
            NO_VERDICT,
            Query(highest("drift_state", _MVS, _CHOSEN), _SLICED),
            mappings=(verdicts(),),
        ),
        lines(
            "Evidence of a rise",
            "Logarithm of the evidence that the divergence rose above the tolerance, of the chosen "
            "slices (narrowgate_drift_e_value_log10). It climbs towards an alarm, and falls back "
            "where the rise was chance.",
            units.COUNT,
            NO_VERDICT,
            Query(highest("drift_e_value_log10", _MVS, _CHOSEN), _SLICED),
            width=12,
            lowest=None,
        ),
    )


def _divergence() -> tuple[Panel, ...]:
    kl, floor = "fidelity_token_kl_divergence_nats", 'variant="full"'
    of_variants = 'variant!="full"'
    sums = rate("fidelity_kl_nats_total", _MVS, _CHOSEN)
    return (
        lines(
            "Divergence and its floor",
            "KL divergence of the full model from the variant, a request's mean, median and 90th "
            "percentile; full is the full model against itself, below which nothing can be seen "
            "(narrowgate_fidelity_token_kl_divergence_nats). Near the floor is perfect; ten times "
            "what the recipe's manifest says is damage.",
            units.NATS,
            NOT_SCORED,
            Query(quantile(0.5, kl, _MV, of_variants), _NAMED + " p50"),
            Query(quantile(0.9, kl, _MV, of_variants), _NAMED + " p90"),
            Query(quantile(0.9, kl, "model", floor), "{{model}} noise floor p90"),
            width=12,
            logarithmic=True,
            dashed=("/p50$/", "/floor/"),
        ),
        lines(
            "Mean, its bounds, its tolerance",
            "Mean KL divergence of the chosen slices, the bounds that hold at all times, and the "
            "tolerance (narrowgate_fidelity_kl_nats_total, narrowgate_fidelity_requests_total, "
            "narrowgate_drift_mean_lower_nats, narrowgate_drift_mean_upper_nats, "
            "narrowgate_drift_tolerance_nats). The bounds begin anew when drift is shown, at 0 "
            "below: right after it they say nothing of what raised it. Where scores are exact, "
            "also what top-k would have found of the mean "
            "(narrowgate_fidelity_kl_bound_nats_total): far below it, top-k hides damage here.",
            units.NATS,
            NOT_SCORED,
            Query(ratio(sums, rate("fidelity_requests_total", _MVS, _CHOSEN)), _SLICED + " mean"),
            Query(
                ratio(
                    rate("fidelity_kl_bound_nats_total", _MVS, _CHOSEN),
                    rate("fidelity_requests_total", _MVS, _CHOSEN),
                ),
                _SLICED + " by top-k",
            ),
            Query(highest("drift_mean_lower_nats", _MVS, _CHOSEN), _SLICED + " lower"),
            Query(highest("drift_mean_upper_nats", _MVS, _CHOSEN), _SLICED + " upper"),
            Query(highest("drift_tolerance_nats", _MVS, _CHOSEN), _SLICED + " tolerance"),
            width=12,
            dashed=("/(by top-k|lower|upper|tolerance)$/",),
        ),
    )


def _tokens() -> tuple[Panel, ...]:
    return (
        lines(
            "Top-1 agreement over time",
            "Share of scored tokens at which both find the same token the likeliest, of the chosen "
            "slices (narrowgate_fidelity_tokens_total). A fall with a steady divergence: texts "
            "with more close calls; with a rising one: damage.",
            units.SHARE,
            NOT_SCORED,
            Query(
                ratio(
                    rate("fidelity_tokens_total", _MVS, _CHOSEN, 'agree="true"'),
                    rate("fidelity_tokens_total", _MVS, _CHOSEN),
                ),
                _SLICED,
            ),
            width=6,
            lowest=None,
            highest=1,
        ),
        lines(
            "Cost of served tokens",
            "How much less likely the full model finds the served tokens: of the chosen slices "
            "(narrowgate_fidelity_nll_nats_total, narrowgate_fidelity_tokens_total), and the 90th "
            "percentile of all requests (narrowgate_fidelity_nll_delta_nats). Growing: the variant "
            "writes what the full model would not.",
            units.NATS,
            NOT_SCORED,
            Query(_less_likely(rate, _MVS, _CHOSEN), _SLICED),
            Query(quantile(0.9, "fidelity_nll_delta_nats", _MV), _NAMED + " p90"),
            width=6,
            lowest=None,
            dashed=("/p90$/",),
        ),
        lines(
            "Spread between requests",
            "Root mean square of the requests' mean KL divergences in the chosen slices "
            "(narrowgate_fidelity_kl_nats_squared_total, narrowgate_fidelity_requests_total). Many "
            "times the mean: few requests carry the divergence; look for the slice that has them.",
            units.NATS,
            NOT_SCORED,
            Query(
                root_mean_square(
                    rate("fidelity_kl_nats_squared_total", _MVS, _CHOSEN),
                    rate("fidelity_requests_total", _MVS, _CHOSEN),
                ),
                _SLICED,
            ),
            width=6,
        ),
        lines(
            "First divergence",
            "Token of an answer at which the likeliest tokens first differ, quarter and median of "
            "the answers where they do (narrowgate_fidelity_first_divergence_tokens). Early: "
            "greedy answers soon read differently, which is no damage by itself.",
            units.TOKENS,
            NOT_SCORED,
            Query(quantile(0.25, "fidelity_first_divergence_tokens", _MV), _NAMED + " p25"),
            Query(quantile(0.5, "fidelity_first_divergence_tokens", _MV), _NAMED + " p50"),
            width=6,
            dashed=("/p25$/",),
        ),
    )


def _answers() -> tuple[Panel, ...]:
    checks = "fidelity_output_checks_total"
    failed = rate(checks, "model, variant, check", 'result="failed"')
    checked = rate(checks, "model, variant, check")
    probed = series("probe_change_nats")
    return (
        tile(
            "Checks passed",
            "Share of checks that drawn answers passed in the time range: not empty, no endless "
            "repetition, sound encoding, JSON and tool calls that parse "
            "(narrowgate_fidelity_output_checks_total). Low: read the failing check beside this.",
            units.SHARE,
            NOT_SCORED,
            Query(ratio(gained(checks, _MV, 'result="ok"'), gained(checks, _MV)), _NAMED),
            width=6,
            height=8,
            decimals=1,
            thresholds=at_least(0.9, 0.99),
        ),
        lines(
            "Answers that fail a check",
            "Share of drawn answers that fail, by check (narrowgate_fidelity_output_checks_total). "
            "runs and encoding are the marks of a broken cache or kernel: swap to full at once.",
            units.SHARE,
            NOT_SCORED,
            Query(
                ratio(f"({failed} or 0 * {checked})", checked),
                "{{model}}@{{variant}} {{check}}",
            ),
            width=10,
        ),
        lines(
            "Probes and fixed texts",
            "Largest change of a fixed prompt's first log-probability since the engine became "
            "ready (narrowgate_probe_change_nats), and how far those of fixed texts are from what "
            "the build kept, beside their limit (narrowgate_fixed_text_distance_nats, "
            "narrowgate_fixed_text_limit_nats). A jump, or texts above their limit: weights or "
            "kernels went wrong; restart the engine.",
            units.NATS,
            "Nothing was probed or read",
            Query(f"max by ({_MV}) ({probed})", _NAMED),
            Query(highest("fixed_text_distance_nats", _MV, _ALL_TEXTS), _NAMED + " texts"),
            Query(highest("fixed_text_limit_nats", _MV, _ALL_TEXTS), _NAMED + " limit"),
            dashed=("/limit$/",),
        ),
    )


def dashboard() -> Dashboard:
    """Return the dashboard of fidelity and verdicts."""
    return Dashboard(
        uid="narrowgate-fidelity",
        title="Narrowgate / Fidelity",
        description="How far the served answers are from the full model's, and what is concluded.",
        rows=(
            Row("Now", _tiles()),
            Row("Slices", _slices()),
            Row("Divergence", (*_divergence(), *_tokens())),
            Row("Answers alone", _answers()),
        ),
        variables=(slices(),),
    )
