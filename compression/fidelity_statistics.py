"""The statistics of a comparison: key in the JSON report, and the name llama.cpp prints.

llama.cpp (``tools/perplexity``, ``--kl-divergence``) calls the compressed model Q and the full one
base. Same definitions here, with two differences: every position counts, not the second half of
each window, and the full model's probabilities are exact, not rounded to 16 bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PERPLEXITY = "Perplexity"
DIVERGENCE = "KL divergence"
PROBABILITY = "Token probability"


@dataclass(frozen=True, slots=True)
class Statistic:
    """One row of the full table."""

    key: str
    """Of a slice in the JSON report."""
    name: str
    """As llama.cpp prints it, but for repeated spaces."""
    group: str
    has_error: bool = False
    """The standard error is there too, as ``<key>_se``."""
    is_share: bool = False
    """A share of 1 in JSON, shown in percent."""

    def show(self, measured: Mapping[str, Any]) -> str:
        """Return the value in one slice of a report, with its standard error."""
        value = measured[self.key]
        if value is None:
            return "undefined"
        if not self.has_error:
            return self._number(value)
        return f"{self._number(value)} ± {self._number(measured[f'{self.key}_se'])}"

    def _number(self, value: float) -> str:
        if self.is_share:
            return f"{100 * value:.3f}%"
        return f"{value:.6f}" if abs(value) < 1e6 else f"{value:.3e}"


def _quantiles(prefix: str, symbol: str, levels: tuple[str, ...]) -> tuple[Statistic, ...]:
    is_share = prefix == "delta_p"
    group = PROBABILITY if is_share else DIVERGENCE
    names = {"max": "Maximum", "median": "Median", "min": "Minimum"}

    def of(level: str) -> Statistic:
        if level in names:
            return Statistic(
                f"{prefix}_{level}", f"{names[level]} {symbol}", group, False, is_share
            )
        key = f"{prefix}_p{level.replace('.', '_')}"
        return Statistic(key, f"{float(level):.1f}% {symbol}", group, False, is_share)

    return tuple(of(level) for level in levels)


STATISTICS = (
    Statistic("ppl", "Mean PPL(Q)", PERPLEXITY, True),
    Statistic("ppl_full", "Mean PPL(base)", PERPLEXITY, True),
    Statistic("ln_ppl_correlation", "Cor(ln(PPL(Q)), ln(PPL(base)))", PERPLEXITY, False, True),
    Statistic("ln_ppl_ratio", "Mean ln(PPL(Q)/PPL(base))", PERPLEXITY, True),
    Statistic("ppl_ratio", "Mean PPL(Q)/PPL(base)", PERPLEXITY, True),
    Statistic("ppl_difference", "Mean PPL(Q)-PPL(base)", PERPLEXITY, True),
    Statistic("kld_mean", "Mean KLD", DIVERGENCE, True),
    *_quantiles(
        "kld",
        "KLD",
        ("max", "99.9", "99", "95", "90", "median", "10", "5", "1", "0.1", "min"),
    ),
    Statistic("delta_p_mean", "Mean Δp", PROBABILITY, True, True),
    *_quantiles(
        "delta_p",
        "Δp",
        ("max", "99.9", "99", "95", "90", "75", "median", "25", "10", "5", "1", "0.1", "min"),
    ),
    Statistic("delta_p_rms", "RMS Δp", PROBABILITY, True, True),
    Statistic("top1", "Same top p", PROBABILITY, True, True),
)
"""Every statistic of a slice, in llama.cpp's order."""

GROUPS = (PERPLEXITY, DIVERGENCE, PROBABILITY)
