"""The child process that compresses: a verb in, JSON lines out (see :mod:`compression.child`).

The last line is ``ready`` with the directory, its manifest and, if asked for, a digest of what is
in it, ``recipes`` with the presets and
their sizes for the model (of the one recipe, where a build is only tried), or ``error``.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from compression.catalog import describe_presets, describe_recipe
from compression.child import report_progress, run_child
from compression.digest import checkpoint_digest
from compression.errors import BuildError
from compression.facts import checkpoint_files
from compression.prepare import build_to, prepare, read_any_facts
from compression.presets import load_recipe
from compression.source import resolve_source


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.verb == "recipes" or (options.verb == "build" and options.dry_run):
        return run_child(lambda: ("recipes", _recipes(options)))
    return run_child(lambda: ("ready", _run(options)))


def _recipes(options: argparse.Namespace) -> dict[str, Any]:
    directory = resolve_source(
        options.model, revision=options.revision, on_progress=report_progress
    )
    facts = read_any_facts(directory)
    if options.verb == "build":
        return {"recipes": [describe_recipe(load_recipe(options.recipe), facts)]}
    return {"recipes": describe_presets(facts)}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    if options.verb == "build" and options.out is None:
        raise BuildError("build needs --out, a new directory, or --dry-run")
    asked = (options.model, options.recipe, options.revision)
    if options.verb == "prepare":
        prepared = prepare(*asked, report_progress, is_measured=options.fidelity)
    else:
        prepared = build_to(*asked, options.out, report_progress, is_measured=options.fidelity)
    manifest = prepared.manifest
    digest = None
    if options.verb == "prepare" and options.digest:
        files = checkpoint_files(prepared.directory)
        digest = checkpoint_digest(prepared.directory, files, report_progress)
    return {
        "directory": str(prepared.directory),
        "cached": prepared.cached,
        "manifest": None if manifest is None else manifest.model_dump(mode="json"),
        "digest": digest,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compression", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "build", "recipes"):
        command = verbs.add_parser(verb)
        command.add_argument("--model", required=True)
        command.add_argument("--revision")
        if verb != "recipes":
            command.add_argument("--recipe", required=True)
            command.add_argument("--fidelity", action="store_true")
        if verb == "prepare":
            command.add_argument("--digest", action="store_true")
        if verb == "build":
            command.add_argument("--out", type=Path)
            command.add_argument("--dry-run", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
