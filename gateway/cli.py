"""The command line: ``narrowgate serve | build | compare | search | inspect | recipes``."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from compression.errors import CompressionError
from gateway.errors import ApiError, ChildFailed, LoadRefused, SettingsError, StartupError
from gateway.launch import run_job
from gateway.serve import EXIT_INTERRUPTED, serve
from gateway.settings import ModelSettings, default_alias, load_settings
from gateway.terminal import Terminal

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_TERMINATED = 143
_NOT_VERIFIED = "Files were not hashed: --verify does that."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with Terminal() as terminal:
            code: int = options.run(options, terminal)
            return code
    except (StartupError, ApiError) as error:
        print(f"narrowgate: error: {error}", file=sys.stderr)
        return EXIT_FAILED if isinstance(error, (ChildFailed, ApiError)) else EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _serve(options: argparse.Namespace, terminal: Terminal) -> int:
    flags: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.model is not None:
        alias = options.name or default_alias(options.model)
        flags["models"] = {alias: _model(options)}
    elif alone := [
        field for field in ("name", *_model(options)) if getattr(options, field) is not None
    ]:
        raise SettingsError(
            f"--{alone[0].replace('_', '-')} needs --model: it describes that model"
        )
    settings = load_settings(options.config, flags)
    return uvloop.run(serve(settings, terminal))


def _model(options: argparse.Namespace) -> dict[str, Any]:
    found = {field: getattr(options, field, None) for field in ModelSettings.model_fields}
    return {field: value for field, value in found.items() if value is not None}


def _build(options: argparse.Namespace, terminal: Terminal) -> int:
    words = ["-m", "compression", "build", *_source(options), f"--recipe={options.recipe}"]
    if options.dry_run:
        return _show_recipes([*words, "--dry-run"], options, terminal)
    if options.out is None:
        raise SettingsError("build needs --out, a new directory, or --dry-run")
    words += [f"--out={options.out}"]
    words += ["--fidelity"] if options.fidelity else []
    code, ready = _run_job(words, terminal)
    if ready is not None:
        terminal.built(ready["directory"], ready["manifest"])
    return code


def _compare(options: argparse.Namespace, terminal: Terminal) -> int:
    # Only this command needs it, and serving should stay small.
    from compression.report.tables import render_tables

    words = ["-m", "gateway.engine.compare", *_source(options)]
    words += [f"--recipe={recipe}" for recipe in options.recipe]
    for flag in ("text", "json", "html", "png", "max_tokens", "threads"):
        if (value := getattr(options, flag)) is not None:
            words += [f"--{flag.replace('_', '-')}={value}"]
    code, compared = _run_job(words, terminal)
    if compared is not None:
        terminal.show(render_tables(compared["report"], statistics=options.statistics))
    return code


def _search(options: argparse.Namespace, terminal: Terminal) -> int:
    from compression.search.tables import render_search

    words = ["-m", "compression.search", *_source(options), f"--out={options.out}"]
    for flag in ("budget", "max_bytes", "png", "calibration", "tokens"):
        if (value := getattr(options, flag)) is not None:
            words += [f"--{flag.replace('_', '-')}={value}"]
    code, found = _run_job(words, terminal)
    if found is not None:
        terminal.show(render_search(found["report"]))
        terminal.note(
            f"The chosen recipe is in {options.out}: serve it with --recipe {options.out}"
        )
    return code


def _inspect(options: argparse.Namespace, terminal: Terminal) -> int:
    from compression.inspection import render_manifest
    from compression.manifest import read_manifest
    from compression.verification import verify

    try:
        manifest = read_manifest(options.directory)
        if manifest is None:
            raise LoadRefused(
                f"{str(options.directory)!r} is no artifact (it has no compression_manifest.json): "
                "give a directory that `narrowgate build` made"
            )
        if options.verify:
            verify(options.directory, manifest, terminal.on_progress)
    except CompressionError as error:
        raise LoadRefused(str(error)) from None
    if options.json:
        terminal.note(manifest.model_dump_json(indent=1))
    else:
        terminal.show(render_manifest(manifest, width=terminal.width))
        terminal.note("every file is as it was built" if options.verify else _NOT_VERIFIED)
    return 0


def _recipes(options: argparse.Namespace, terminal: Terminal) -> int:
    from compression.catalog import describe_presets, render_presets
    from compression.presets import load_recipe, recipe_yaml

    if options.name is not None:
        try:
            terminal.note(recipe_yaml(load_recipe(options.name)).rstrip())
        except CompressionError as error:
            raise LoadRefused(str(error)) from None
        return 0
    if options.model is None:
        if options.revision is not None:
            raise SettingsError("--revision needs --model: it describes that model")
        terminal.show(render_presets(describe_presets(None), None))
        return 0
    words = ["-m", "compression", "recipes", *_source(options)]
    return _show_recipes(words, options, terminal)


def _show_recipes(words: list[str], options: argparse.Namespace, terminal: Terminal) -> int:
    from compression.catalog import render_presets

    code, listed = _run_job(words, terminal)
    if listed is not None:
        terminal.show(render_presets(listed["recipes"], options.model))
    return code


def _source(options: argparse.Namespace) -> list[str]:
    words = [f"--model={options.model}"]
    return words if options.revision is None else [*words, f"--revision={options.revision}"]


def _run_job(words: list[str], terminal: Terminal) -> tuple[int, dict[str, Any] | None]:
    """Run a child to its end; a signal ends it in order and quietly."""
    return uvloop.run(_until_signal(run_job(words, terminal.on_progress)))


async def _until_signal(
    job: Coroutine[Any, Any, dict[str, Any]],
) -> tuple[int, dict[str, Any] | None]:
    task = asyncio.create_task(job)
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            return 0, await task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return (EXIT_INTERRUPTED if signal.SIGINT in caught else EXIT_TERMINATED), None


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, like the rest of the command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_REFUSED, f"narrowgate: error: {message}; see {self.prog} --help\n")


def _positive(value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _size(value: str) -> int:
    """Return a number of bytes from ``90000000``, ``90MB`` or ``1.5GB``."""
    number = value.strip().upper().removesuffix("B")
    factor = {"K": 1e3, "M": 1e6, "G": 1e9}.get(number[-1:], 1)
    try:
        size = float(number.rstrip("KMG")) * factor
    except ValueError:
        size = 0
    if not 1 <= size < 1e15:
        raise argparse.ArgumentTypeError(f"{value!r} is no size such as 90MB or 1.5GB")
    return int(size)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="narrowgate", description=__doc__)
    parser.add_argument(
        "--version", action="version", version=f"narrowgate {version('narrowgate')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve a model behind the OpenAI API"))
    _add_build(commands.add_parser("build", help="compress a model into a directory"))
    _add_compare(commands.add_parser("compare", help="measure recipes against the full model"))
    _add_search(commands.add_parser("search", help="find the smallest recipe within a budget"))
    _add_inspect(commands.add_parser("inspect", help="show what an artifact is"))
    _add_recipes(commands.add_parser("recipes", help="list the presets, with sizes for a model"))
    return parser


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_serve)
    _add_source(command, required=False)
    command.add_argument("--recipe", help="preset, 'full' or a .yaml file (default: int4)")
    command.add_argument("--name", help="what clients send as model (default: from --model)")
    command.add_argument("--host", help="default: 127.0.0.1")
    command.add_argument("--port", type=int, help="default: 8000")
    command.add_argument("--threads", type=_positive, metavar="N", help="of the engine")
    command.add_argument("--max-model-len", type=_positive, metavar="N", help="context in tokens")
    command.add_argument("--max-num-seqs", type=_positive, metavar="N", help="decoded together")
    command.add_argument(
        "--max-num-batched-tokens", type=_positive, metavar="N", help="of all in one step"
    )
    command.add_argument(
        "--kv-cache-memory-bytes", metavar="SIZE", help="of keys and values, as 2GiB"
    )
    command.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    command.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML")


def _add_build(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_build)
    _add_source(command, required=True)
    command.add_argument("--recipe", default="int4", help="preset or a .yaml file")
    command.add_argument("--out", type=Path, metavar="DIR", help="a new directory")
    command.add_argument(
        "--dry-run", action="store_true", help="only tell the sizes and the memory it takes"
    )
    command.add_argument(
        "--fidelity", action="store_true", help="measure every slice for the manifest"
    )


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_compare)
    _add_source(command, required=True)
    command.add_argument("--recipe", action="append", required=True, help="may be repeated")
    command.add_argument("--text", type=Path, metavar="DIR", help="each file is a slice")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    command.add_argument("--png", type=Path, metavar="FILE", help="draw quality against size")
    command.add_argument(
        "--statistics", action="store_true", help="print all of llama.cpp's, for every slice"
    )
    command.add_argument("--max-tokens", type=_positive, metavar="N", help="of each slice")
    command.add_argument("--threads", type=_positive, metavar="N")


def _add_search(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_search)
    _add_source(command, required=True)
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument("--budget", metavar="TERMS", help="such as 'kld<=0.05, top1>=0.9'")
    goal.add_argument("--max-bytes", type=_size, metavar="SIZE", help="of the weights, as 90MB")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="recipe to write")
    command.add_argument("--png", type=Path, metavar="FILE", help="draw the frontier")
    command.add_argument("--calibration", metavar="TEXT", help="a text file or a directory of them")
    command.add_argument("--tokens", type=_positive, metavar="N", help="of the calibration text")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_inspect)
    command.add_argument("directory", type=Path, metavar="DIR", help="of an artifact")
    command.add_argument("--json", action="store_true", help="print the whole manifest")
    command.add_argument("--verify", action="store_true", help="hash every file")


def _add_recipes(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_recipes)
    command.add_argument("name", nargs="?", metavar="NAME", help="print this one as YAML")
    _add_source(command, required=False)


def _add_source(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--model", required=required, help="'smollm2', a local directory, or a hub id org/name"
    )
    command.add_argument("--revision", help="of a hub id")
