"""The child process that compresses: verbs in, JSON lines out.

Each line on standard output is one event (see :mod:`compression.events`); the last one is
``ready`` or ``error``. Exit code 2 means refused, 130 or 143 interrupted.
"""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from compression.errors import CompressionError
from compression.events import Progress, encode, encode_progress
from compression.prepare import Prepared, build_to, prepare


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        if options.verb == "prepare":
            prepared = prepare(options.model, options.recipe, options.revision, _report)
        else:
            prepared = build_to(
                options.model, options.recipe, options.revision, options.out, _report
            )
    except CompressionError as error:
        _emit(encode("error", {"kind": type(error).__name__, "message": str(error)}))
        return 2
    _emit(encode("ready", _ready(prepared)))
    return 0


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


def _ready(prepared: Prepared) -> dict[str, object]:
    manifest = prepared.manifest
    return {
        "directory": str(prepared.directory),
        "cached": prepared.cached,
        "manifest": None if manifest is None else manifest.model_dump(mode="json"),
    }


def _report(progress: Progress) -> None:
    _emit(encode_progress(progress))


def _emit(line: str) -> None:
    print(line, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Unwind, so that every ``finally`` on the way removes what is half-written."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
