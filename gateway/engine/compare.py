"""The child process behind ``narrowgate compare`` (see :mod:`compression.child`).

The last line is ``compared`` with the report, or ``error``.
"""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from compression.child import report_progress, run_child
from compression.errors import ReaderError
from compression.evaluation import builtin_slices, slices_from
from compression.prepare import prepare
from compression.report.files import require_writable, write_json
from compression.report.page import write_page
from compression.report.picture import plot
from gateway.engine.comparison import BUILTIN, Serve, compare, recipe_names
from gateway.engine.tokenizer import load_backend
from gateway.engine.vllm_comparison import TOP
from gateway.engine.vllm_runner import require_vllm, serve_reader

EMBEDDED, VLLM = "embedded", "vllm"


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison and return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(words)
    options.command = shlex.join(["narrowgate", "compare", *words])
    return run_child(lambda: ("compared", {"report": _run(options)}))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    """Check everything that can be checked at once, compare, write what was asked for."""
    recipe_names(options.recipe)
    require_writable({f"--{each}": getattr(options, each) for each in ("json", "html", "png")})
    serve = _serve(options)
    slices = builtin_slices() if options.text is None else slices_from(options.text)
    # Imported last: it takes a second, which no refusal above needs.
    from gateway.engine.runner import load_runner

    report = compare(
        options.model,
        options.recipe,
        slices,
        prepare=prepare,
        load_runner=partial(load_runner, threads=options.threads, max_model_len=None),
        load_tokenizer=load_backend,
        on_progress=report_progress,
        revision=options.revision,
        text=BUILTIN if options.text is None else str(options.text),
        max_tokens=options.max_tokens,
        memory_bytes=options.memory,
        serve=serve,
    )
    report["command"] = options.command
    if options.json is not None:
        write_json(report, options.json)
    if options.html is not None:
        write_page(report, options.html)
    if options.png is not None:
        plot(report, options.png)
    return report


def _serve(options: argparse.Namespace) -> Serve | None:
    """Return what starts vLLM, or None if only the embedded engine is to be measured."""
    if options.engine != VLLM:
        if options.vllm_python is not None:
            raise ReaderError(f"--vllm-python needs --engine {VLLM}")
        return None
    python = require_vllm(options.vllm_python)
    return partial(serve_reader, python=python, top=TOP, threads=options.threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway.engine.compare", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe", required=True, action="append", help="may be repeated")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--text", type=Path, metavar="DIR", help="each file is a slice")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE")
    parser.add_argument("--max-tokens", type=_positive, metavar="N", help="of each slice")
    parser.add_argument("--threads", type=_positive, metavar="N")
    parser.add_argument("--memory", type=_positive, metavar="BYTES", help="of all recipes together")
    parser.add_argument("--engine", choices=(EMBEDDED, VLLM), default=EMBEDDED)
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="with vLLM installed")
    return parser


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"invalid positive number value: {value!r}")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
