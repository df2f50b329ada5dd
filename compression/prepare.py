"""From what the user names to a directory that an engine can serve."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compression.calibration_documents import CalibrationText, read_calibration_text
from compression.checked_plan import plan_checked
from compression.digest import source_digest, weight_digests
from compression.errors import RecipeError, UnsupportedArchitecture
from compression.events import OnProgress
from compression.facts import (
    CheckpointFacts,
    checkpoint_files,
    read_facts,
    read_header,
    read_outlined_facts,
)
from compression.fidelity_check import add_fidelity, require_budget
from compression.hub import revision_of
from compression.machine import require_machine
from compression.manifest import Manifest, SourceRecord, read_manifest
from compression.out_directory import out_directory, require_new
from compression.paths import store_dir
from compression.plan import Plan
from compression.presets import load_recipe
from compression.recipe import FULL, Recipe
from compression.source import resolve_source
from compression.store import ensure

_LAYOUT = 3
"""Part of every store key: raise it when the same recipe starts to give other bytes."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory ready to serve; ``manifest`` is None for the full checkpoint itself."""

    directory: Path
    manifest: Manifest | None
    cached: bool


def prepare(
    model: str,
    recipe: str,
    revision: str | None,
    on_progress: OnProgress,
    *,
    is_measured: bool = False,
) -> Prepared:
    """Return the full checkpoint, or the artifact of it in the store, made if need be.

    ``is_measured`` puts its fidelity into the manifest, where the family is known.

    Raises:
        CompressionError: the recipe, the model or the store refuses.
    """
    asked = None if recipe == FULL else load_recipe(recipe)
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    if asked is None:
        _require_whole(directory)
        return Prepared(directory, None, cached=True)
    facts = read_any_facts(directory)
    can_measure = facts.known is not None
    return _prepare(model, facts, asked, on_progress, is_measured=is_measured and can_measure)


def prepare_recipe(
    model: str,
    recipe: Recipe,
    revision: str | None,
    on_progress: OnProgress,
    *,
    is_measured: bool = False,
) -> Prepared:
    """Return the artifact of a recipe that is in no table and no file, made if need be.

    ``is_measured`` puts its fidelity into the manifest.

    Raises:
        CompressionError: the recipe, the model or the store refuses.
    """
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    facts = read_facts(directory)
    return _prepare(model, facts, recipe, on_progress, is_measured=is_measured)


def _prepare(
    model: str,
    facts: CheckpointFacts,
    asked: Recipe,
    on_progress: OnProgress,
    *,
    is_measured: bool = False,
) -> Prepared:
    plan = plan_checked(facts, asked)
    text = _calibration_text(plan)
    source = _source_record(model, facts, on_progress)
    read = "" if text is None else text.digest
    key = hashlib.sha256(f"{_LAYOUT}:{source.digest}:{asked.digest}:{read}".encode())
    write = partial(_write, plan, text, source, on_progress=on_progress, is_measured=is_measured)
    artifact, cached = ensure(store_dir(), key.hexdigest()[:32], write, on_progress)
    manifest = read_manifest(artifact)
    # A hit may come from a recipe that had no budget, or another one.
    if cached and manifest is not None and (is_measured or asked.budget is not None):
        manifest = add_fidelity(plan, artifact, manifest, on_progress)
        require_budget(asked, manifest.fidelity or ())
    return Prepared(artifact, manifest, cached)


def _require_whole(directory: Path) -> None:
    """Refuse a full checkpoint that is damaged; of other families the engine knows more."""
    try:
        read_facts(directory)
    except UnsupportedArchitecture:
        for file in checkpoint_files(directory):
            read_header(directory / file)


def build_to(
    model: str,
    recipe: str,
    revision: str | None,
    out: Path,
    on_progress: OnProgress,
    *,
    is_measured: bool = False,
) -> Prepared:
    """Build the artifact at ``out``, which must not exist or be an empty directory.

    ``is_measured`` puts its fidelity into the manifest.

    Raises:
        CompressionError: the recipe, the model or the destination refuses.
    """
    if recipe == FULL:
        raise RecipeError("recipe 'full' leaves nothing to build: use a recipe such as int4")
    asked = load_recipe(recipe)
    place = require_new(out)
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    plan = plan_checked(read_any_facts(directory), asked)
    text = _calibration_text(plan)
    with out_directory(place) as temporary:
        source = _source_record(model, plan.facts, on_progress)
        manifest = _write(
            plan, text, source, temporary, on_progress=on_progress, is_measured=is_measured
        )
    return Prepared(place, manifest, cached=False)


def read_any_facts(directory: Path) -> CheckpointFacts:
    """Return the facts of a known family, else those of any model that transformers can build.

    Raises:
        CompressionError: it is neither.
    """
    try:
        return read_facts(directory)
    except UnsupportedArchitecture:
        # It builds the model on the meta device, which takes torch and transformers.
        from compression.outline import read_outline

        return read_outlined_facts(directory, read_outline(directory))


def _source_record(model: str, facts: CheckpointFacts, on_progress: OnProgress) -> SourceRecord:
    return SourceRecord(
        model=model,
        revision=revision_of(facts.directory),
        architecture=facts.name,
        digest=source_digest(facts, on_progress),
        files=weight_digests(facts.directory, facts.files),
    )


def _calibration_text(plan: Plan) -> CalibrationText | None:
    if plan.facts.known is None or not plan.carried.needs_calibration:
        return None
    return read_calibration_text(plan.recipe.calibration.text)


def _write(
    plan: Plan,
    text: CalibrationText | None,
    source: SourceRecord,
    directory: Path,
    *,
    on_progress: OnProgress,
    is_measured: bool = False,
) -> Manifest:
    require_machine(plan)
    # A hit in the store needs no torch, which takes seconds to import.
    from compression.build import build

    return build(plan, source, directory, on_progress, text=text, is_measured=is_measured)
