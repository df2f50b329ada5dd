"""From what the user names to a directory that an engine can serve."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compression.digest import source_digest, weight_digests
from compression.errors import BuildError, RecipeError, UnsupportedArchitecture
from compression.events import OnProgress
from compression.facts import (
    CheckpointFacts,
    checkpoint_files,
    read_facts,
    read_header,
    read_outlined_facts,
)
from compression.hub import revision_of
from compression.manifest import Manifest, SourceRecord, read_manifest
from compression.paths import store_dir
from compression.plan import Plan, make_plan
from compression.presets import load_recipe
from compression.pruning.forecast import pruned_facts
from compression.pruning.shape import pruned_shape
from compression.recipe import FULL, Recipe
from compression.source import resolve_source
from compression.store import aside, ensure

_LAYOUT = 2
"""Part of every store key: raise it when the same recipe starts to give other bytes."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory ready to serve; ``manifest`` is None for the full checkpoint itself."""

    directory: Path
    manifest: Manifest | None
    cached: bool


def prepare(model: str, recipe: str, revision: str | None, on_progress: OnProgress) -> Prepared:
    """Return the full checkpoint, or the artifact of it in the store, made if need be.

    Raises:
        CompressionError: the recipe, the model or the store refuses.
    """
    asked = None if recipe == FULL else load_recipe(recipe)
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    if asked is None:
        _require_whole(directory)
        return Prepared(directory, None, cached=True)
    return _prepare(model, read_any_facts(directory), asked, on_progress)


def prepare_recipe(
    model: str, recipe: Recipe, revision: str | None, on_progress: OnProgress
) -> Prepared:
    """Return the artifact of a recipe that is in no table and no file, made if need be.

    Raises:
        CompressionError: the recipe, the model or the store refuses.
    """
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    return _prepare(model, read_facts(directory), recipe, on_progress)


def _prepare(
    model: str, facts: CheckpointFacts, asked: Recipe, on_progress: OnProgress
) -> Prepared:
    plan = plan_checked(facts, asked)
    source = _source_record(model, facts, on_progress)
    key = hashlib.sha256(f"{_LAYOUT}:{source.digest}:{asked.digest}".encode()).hexdigest()[:32]
    write = partial(_write, plan, source, on_progress=on_progress)
    artifact, cached = ensure(store_dir(), key, write)
    return Prepared(artifact, read_manifest(artifact), cached)


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
    out = out.absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BuildError(f"--out {str(out)!r} exists and is not empty: give a new directory")
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    facts = read_any_facts(directory)
    plan = plan_checked(facts, asked)
    source = _source_record(model, facts, on_progress)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with aside(out.parent, f".{out.name}-") as temporary:
            manifest = _write(
                plan, source, temporary, on_progress=on_progress, is_measured=is_measured
            )
            temporary.replace(out)
    except OSError as error:
        raise BuildError(f"cannot write --out {str(out)!r}: {error.strerror or error}") from None
    return Prepared(out, manifest, cached=False)


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


def plan_checked(facts: CheckpointFacts, recipe: Recipe) -> Plan:
    """Return the plan, once pruning has agreed too.

    Raises:
        RecipeError: the recipe cannot be carried out on this checkpoint.
    """
    plan = make_plan(facts, recipe)
    if recipe.prune.is_active:
        # What stays must fit the recipe too: groups, units, targets.
        shape = pruned_shape(recipe.prune, facts.architecture)
        make_plan(pruned_facts(facts, shape), recipe)
    return plan


def _source_record(model: str, facts: CheckpointFacts, on_progress: OnProgress) -> SourceRecord:
    return SourceRecord(
        model=model,
        revision=revision_of(facts.directory),
        architecture=facts.name,
        digest=source_digest(facts, on_progress),
        files=weight_digests(facts.directory, facts.files),
    )


def _write(
    plan: Plan,
    source: SourceRecord,
    directory: Path,
    *,
    on_progress: OnProgress,
    is_measured: bool = False,
) -> Manifest:
    # A hit in the store needs no torch, which takes seconds to import.
    from compression.build import build

    return build(plan, source, directory, on_progress, is_measured=is_measured)
