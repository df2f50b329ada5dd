"""From what the user names to a directory that an engine can serve."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compression.digest import source_digest
from compression.errors import BuildError, RecipeError
from compression.events import OnProgress
from compression.facts import read_facts
from compression.manifest import Manifest, SourceRecord, read_manifest
from compression.paths import store_dir
from compression.plan import Plan, make_plan
from compression.recipe import FULL, Recipe, load_recipe
from compression.source import resolve_source
from compression.store import aside, ensure

_LAYOUT = 1
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
    if asked is None:
        directory = resolve_source(model, revision=revision, on_progress=on_progress)
        read_facts(directory)
        return Prepared(directory, None, cached=True)
    plan, source = _plan(model, asked, revision, on_progress)
    key = hashlib.sha256(f"{_LAYOUT}:{source.digest}:{asked.digest}".encode()).hexdigest()[:32]
    write = partial(_write, plan, source, on_progress=on_progress)
    artifact, cached = ensure(store_dir(), key, write)
    return Prepared(artifact, read_manifest(artifact), cached)


def build_to(
    model: str, recipe: str, revision: str | None, out: Path, on_progress: OnProgress
) -> Prepared:
    """Build the artifact at ``out``, which must not exist or be an empty directory.

    Raises:
        CompressionError: the recipe, the model or the destination refuses.
    """
    if recipe == FULL:
        raise RecipeError("recipe 'full' leaves nothing to build: use a recipe such as int4")
    asked = load_recipe(recipe)
    # A hit in the store needs no torch, which takes seconds to import.
    from compression.build import build

    out = out.absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BuildError(f"--out {str(out)!r} exists and is not empty: give a new directory")
    plan, source = _plan(model, asked, revision, on_progress)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with aside(out.parent, f".{out.name}-") as temporary:
            manifest = build(plan, source, temporary, on_progress)
            temporary.replace(out)
    except OSError as error:
        raise BuildError(f"cannot write --out {str(out)!r}: {error.strerror or error}") from None
    return Prepared(out, manifest, cached=False)


def _plan(
    model: str, recipe: Recipe, revision: str | None, on_progress: OnProgress
) -> tuple[Plan, SourceRecord]:
    directory = resolve_source(model, revision=revision, on_progress=on_progress)
    facts = read_facts(directory)
    plan = make_plan(facts, recipe)
    digest = source_digest(facts, on_progress)
    return plan, SourceRecord(model=model, architecture=facts.architecture.name, digest=digest)


def _write(plan: Plan, source: SourceRecord, directory: Path, *, on_progress: OnProgress) -> None:
    from compression.build import build

    build(plan, source, directory, on_progress)
