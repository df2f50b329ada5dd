"""The fidelity of a finished build, for its manifest and against its recipe's budget."""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from compression.artifact import write_manifest
from compression.checked_plan import plan_once_pruned
from compression.digest import hash_file
from compression.errors import BuildError, CompressionError
from compression.evaluation import WINDOW_TOKENS, builtin_slices, cut
from compression.events import OnProgress
from compression.facts import CheckpointFacts
from compression.fidelity_record import SliceFidelity
from compression.fixed_texts import FixedTexts, FixedTextsRecord, write_fixed_texts
from compression.manifest import Manifest
from compression.plan import Plan
from compression.recipe import Recipe
from compression.search.budget import violations

logger = logging.getLogger(__name__)

SLICE_TOKENS = 512
"""Tokens of each built-in slice that a build is measured on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a build is found to be."""

    fidelity: tuple[SliceFidelity, ...]
    """Of each slice, worst first."""
    texts: FixedTexts
    """What its weights predict for them."""

    def keep_texts(self, directory: Path) -> tuple[FixedTextsRecord, dict[str, str]]:
        """Write the texts beside the weights; return their record, and the file's digest."""
        path = write_fixed_texts(self.texts, directory)
        tokens = sum(len(text.top_ids) for text in self.texts.texts)
        return FixedTextsRecord(file=path.name, tokens=tokens), {path.name: hash_file(path)}


def measure_build(
    full: CheckpointFacts,
    served: CheckpointFacts,
    recipe: Recipe,
    directory: Path,
    on_progress: OnProgress,
) -> Measured:
    """Return the fidelity of each slice, and what the artifact predicts for its text.

    Args:
        full: the source.
        served: what the weights in ``directory`` were made from: ``full``, or what pruning left.
        recipe: what was done.
        directory: of the artifact.
        on_progress: is told of layers.
    """
    # Only a build that is measured needs torch and transformers, which take seconds to import.
    from compression.fidelity import summarize
    from compression.fixed_texts_keeping import Keeping
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
    keeping = Keeping(slices)
    scores = measure(
        full, served, weights, slices, on_progress, recipe=recipe.name, on_logits=keeping.take
    )
    records = (summarize(each).record(name) for name, each in scores.items())
    fidelity = tuple(sorted(records, key=lambda each: -each.kld_mean))
    return Measured(fidelity, keeping.texts())


def add_fidelity(
    plan: Plan, artifact: Path, manifest: Manifest, on_progress: OnProgress
) -> Manifest:
    """Return the manifest with the artifact's fidelity, measured now if it never was.

    What was measured before texts were kept is measured again, where the directory can be written;
    where that fails, it stays as it was.
    """
    if manifest.fidelity is None:
        return _measured(plan, artifact, manifest, on_progress)
    if manifest.fixed_texts is not None or not os.access(artifact, os.W_OK):
        return manifest
    try:
        return _measured(plan, artifact, manifest, on_progress)
    except (CompressionError, OSError) as error:
        # Its fidelity is known, and nothing but the check of its engines wants more.
        logger.warning("%s keeps no fixed texts: %s", artifact, error)
        return manifest


def _measured(plan: Plan, artifact: Path, manifest: Manifest, on_progress: OnProgress) -> Manifest:
    served = plan.facts
    if plan.recipe.prune.is_active:  # its config lies with the artifact, not with the source
        served = replace(plan_once_pruned(plan).facts, directory=artifact)
    found = measure_build(plan.facts, served, plan.recipe, artifact, on_progress)
    record, digests = found.keep_texts(artifact)
    measured = manifest.model_copy(
        update={
            "fidelity": found.fidelity,
            "fixed_texts": record,
            "files": {**manifest.files, **digests},
        }
    )
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
