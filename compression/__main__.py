"""The child process that compresses: a verb in, JSON lines out (see :mod:`compression.child`).

The last line is ``ready`` with the directory and its manifest, or ``error``.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from compression.child import report_progress, run_child
from compression.prepare import build_to, prepare


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    options = _parser().parse_args(arguments)
    return run_child(lambda: ("ready", _run(options)))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    asked = (options.model, options.recipe, options.revision)
    if options.verb == "prepare":
        prepared = prepare(*asked, report_progress)
    else:
        prepared = build_to(*asked, options.out, report_progress)
    manifest = prepared.manifest
    return {
        "directory": str(prepared.directory),
        "cached": prepared.cached,
        "manifest": None if manifest is None else manifest.model_dump(mode="json"),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compression", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "build"):
        command = verbs.add_parser(verb)
        command.add_argument("--model", required=True)
        command.add_argument("--recipe", required=True)
        command.add_argument("--revision")
        if verb == "build":
            command.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
