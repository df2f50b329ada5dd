"""What a comparison found on vLLM, beside the embedded engine on the same support."""

from collections.abc import Mapping, Sequence
from typing import Any

from compression.report.numbers import significant, with_interval

Recipe = Mapping[str, Any]

HEADERS = ("recipe", "slice", "tokens", "vLLM", "embedded", "exact", "top-1\nvLLM", "top-1\nemb.")
"""The third last is the embedded engine's divergence over the whole vocabulary."""


def measured_on_vllm(report: Mapping[str, Any]) -> list[Recipe]:
    """Return the recipes that vLLM ran: all of them or none."""
    return [recipe for recipe in report["recipes"] if "vllm" in recipe]


def vllm_rows(recipe: Recipe) -> list[list[str]]:
    """Return a row for all text together, then one for each slice, vLLM's worst first."""
    on_vllm, embedded = recipe["vllm"], recipe["vllm"]["embedded"]
    parts = {"all": (on_vllm["all"], embedded["all"], recipe["all"])}
    for name, measured in on_vllm["slices"].items():
        parts[name] = (measured, embedded["slices"][name], recipe["slices"][name])
    return [
        [
            name,
            str(theirs["tokens"]),
            with_interval(theirs["kld_mean"], theirs["kld_mean_ci95"]),
            with_interval(ours["kld_mean"], ours["kld_mean_ci95"]),
            significant(exact["kld_mean"]),
            f"{100 * theirs['top1']:.1f}%",
            f"{100 * ours['top1']:.1f}%",
        ]
        for name, (theirs, ours, exact) in parts.items()
    ]


def vllm_note(recipes: Sequence[Recipe]) -> str:
    """Return what the figures mean and what vLLM ran."""
    first = recipes[0]["vllm"]
    ran = [f"{recipe['recipe']}: {kernels}" for recipe in recipes if (kernels := _kernels(recipe))]
    return (
        f"KLD on the {first['top']} tokens that vLLM {first['version']} finds likeliest and one "
        "bin for all others, a lower bound; 'embedded' is the same of the embedded engine, 'exact' "
        f"its divergence over the whole vocabulary. {'; '.join(ran)}"
    ).rstrip()


def _kernels(recipe: Recipe) -> str:
    ran = recipe["vllm"]
    return ", ".join(
        f"{scheme} on {kernel} ({ran['numerics'][scheme]})"
        for scheme, kernel in ran["kernels"].items()
    )
