"""The fidelity of a finished build, for its manifest and against its recipe's budget."""

from dataclasses import replace
from pathlib import Path

from compression.artifact import write_manifest
from compression.checked_plan import plan_once_pruned
from compression.errors import BuildError
from compression.evaluation import WINDOW_TOKENS, builtin_slices, cut
from compression.events import OnProgress
from compression.facts import CheckpointFacts
from compression.fidelity_record import SliceFidelity
from compression.manifest import Manifest
from compression.plan import Plan
from compression.recipe import Recipe
from compression.search.budget import violations

SLICE_TOKENS = 512
"""Tokens of each built-in slice that a build is measured on."""


def measure_build(
    full: CheckpointFacts,
    served: CheckpointFacts,
    recipe: Recipe,
    directory: Path,
    on_progress: OnProgress,
) -> tuple[SliceFidelity, ...]:
    """Return the fidelity of each slice, worst first.

    Args:
        full: the source.
        served: what the weights in ``directory`` were made from: ``full``, or what pruning left.
        recipe: what was done.
        directory: of the artifact.
        on_progress: is told of layers.
    """
    # Only a build that is measured needs torch and transformers, which take seconds to import.
    from compression.fidelity import summarize
    from compression.measurement import measure
    from compression.served import ServedWeights
    from compression.tokenizer_file import load_tokenizer

    tokenizer = load_tokenizer(full.directory)
    width = min(WINDOW_TOKENS, full.architecture.max_position_embeddings)
    slices = {
        name: cut(name, body, tokenizer, window_tokens=width, max_tokens=SLICE_TOKENS)
        for name, body in builtin_slices().items()
    }
    weights = ServedWeights(directory, recipe)
    scores = measure(full, served, weights, slices, on_progress, recipe=recipe.name)
    records = (summarize(each).record(name) for name, each in scores.items())
    return tuple(sorted(records, key=lambda each: -each.kld_mean))


def add_fidelity(
    plan: Plan, artifact: Path, manifest: Manifest, on_progress: OnProgress
) -> Manifest:
    """Return the manifest with the artifact's fidelity, measured now if it never was."""
    if manifest.fidelity is not None:
        return manifest
    served = plan.facts
    if plan.recipe.prune.is_active:  # its config lies with the artifact, not with the source
        served = replace(plan_once_pruned(plan).facts, directory=artifact)
    fidelity = measure_build(plan.facts, served, plan.recipe, artifact, on_progress)
    measured = manifest.model_copy(update={"fidelity": fidelity})
    write_manifest(measured, artifact)
    return measured


def require_budget(recipe: Recipe, slices: tuple[SliceFidelity, ...]) -> None:
    """Refuse what breaks the recipe's budget.

    Raises:
        BuildError: says by how much.
    """
    if recipe.budget is None:
        return
    broken = violations(recipe.budget, slices)
    if broken:
        raise BuildError(
            f"recipe {recipe.name!r} breaks its budget ({'; '.join(broken)}): use a safer recipe, "
            "find one with `narrowgate search`, or allow more"
        )
