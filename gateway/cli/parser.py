"""Every command and flag of the command line."""

import argparse
import os
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, get_args

from gateway.cli.building import run_build, run_inspect
from gateway.cli.chat.session import run_chat
from gateway.cli.comparing import run_compare, run_search
from gateway.cli.completion import SHELLS, run_completion
from gateway.cli.doctor import run_doctor
from gateway.cli.engine import run_engine
from gateway.cli.exits import EXIT_REFUSED
from gateway.cli.models import run_models
from gateway.cli.recipes import run_recipes
from gateway.cli.serving import run_serve
from gateway.model_settings import EngineKind
from gateway.settings import PREPARE_TIMEOUT_S
from gateway.shadow_settings import default_ledger_path

_URL = "http://127.0.0.1:8000"
_DESCRIPTION = "Serve models made small behind the OpenAI API, and prove that they still behave."


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, like the rest of the command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_REFUSED, f"narrowgate: error: {message}; see {self.prog} --help\n")


def _positive(value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _above_zero(value: str, unit: str, limit: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0
    if not 0 < number < limit:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of {unit} above 0")
    return number


def _hours(value: str) -> float:
    return _above_zero(value, "hours", 1e6)


def _seconds(value: str) -> float:
    return _above_zero(value, "seconds", 1e9)


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = -1
    if not 0 <= rate <= 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no share: give 0 to 1")
    return rate


def _port(value: str) -> int:
    if not (value.isascii() and value.isdecimal()) or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is no port: give 0 to 65535")
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


def _option(text: str) -> tuple[str, str | bool]:
    name, separator, value = text.partition("=")
    return name, value if separator else True


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the option ``run`` is what does the command."""
    parser = _Parser(prog="narrowgate", description=_DESCRIPTION)
    parser.add_argument(
        "--version", action="version", version=f"narrowgate {version('narrowgate')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve a model behind the OpenAI API"))
    _add_engine(commands.add_parser("engine", help="run one engine, for a gateway elsewhere"))
    _add_chat(commands.add_parser("chat", help="chat with a running server"))
    _add_models(commands.add_parser("models", help="list what a running server serves"))
    _add_build(commands.add_parser("build", help="compress a model into a directory"))
    _add_compare(commands.add_parser("compare", help="measure recipes against the full model"))
    _add_search(commands.add_parser("search", help="find the smallest recipe within a budget"))
    _add_inspect(commands.add_parser("inspect", help="show what an artifact is"))
    _add_recipes(commands.add_parser("recipes", help="list the presets, with sizes for a model"))
    _add_doctor(commands.add_parser("doctor", help="check this machine"))
    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=run_completion, parser=parser)
    return parser


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_serve)
    _add_source(command, required=False)
    command.add_argument("--recipe", help="preset, 'full' or a .yaml file (default: int4)")
    command.add_argument("--name", help="what clients send as model (default: from --model)")
    command.add_argument("--host", help="default: 127.0.0.1")
    command.add_argument("--port", type=int, help="default: 8000")
    _add_engine_flags(command)
    command.add_argument(
        "--shadow", type=_rate, metavar="RATE", help="share of requests to score, 0 to 1"
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML")


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_engine)
    _add_source(command, required=True)
    command.add_argument("--recipe", help="preset, 'full' or a .yaml file (default: int4)")
    command.add_argument("--name", help="what the gateway calls it (default: from --model)")
    host = os.environ.get("NARROWGATE_HOST", "127.0.0.1")
    command.add_argument("--host", default=host, help="default: %(default)s (NARROWGATE_HOST)")
    port = os.environ.get("NARROWGATE_PORT", "8000")
    if port.startswith("tcp://"):  # of Kubernetes, where a Service has this name
        port = "8000"
    command.add_argument(
        "--port",
        type=_port,
        default=port,
        metavar="N",
        help="default: %(default)s (NARROWGATE_PORT)",
    )
    command.add_argument(
        "--fidelity", action="store_true", help="measure the recipe, for verdicts of the gateway"
    )
    _add_prepare_timeout(command)
    _add_engine_flags(command)


def _add_engine_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=get_args(EngineKind), help="default: embedded")
    command.add_argument(
        "--vllm-python", type=Path, metavar="PATH", help="the interpreter that has vLLM"
    )
    command.add_argument(
        "--vllm-options",
        type=_option,
        nargs="+",
        metavar="NAME[=VALUE]",
        help="vLLM's own, without their dashes",
    )
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


def _add_chat(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_chat)
    _add_endpoint(command)
    command.add_argument("--model", metavar="NAME", help="default: the first that is served")
    command.add_argument("--system", metavar="TEXT", help="what the model is told first")
    command.add_argument("--temperature", type=float, metavar="T", help="0 is always the same")
    command.add_argument("--top-p", type=float, metavar="P")
    command.add_argument("--max-tokens", type=_positive, metavar="N", help="of an answer")
    command.add_argument("--seed", type=int, metavar="N")


def _add_models(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_models)
    _add_endpoint(command)
    command.add_argument("--json", action="store_true", help="print what the server says")


def _add_build(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_build)
    _add_source(command, required=True)
    command.add_argument("--recipe", default="int4", help="preset or a .yaml file")
    command.add_argument("--out", type=Path, metavar="DIR", help="a new directory")
    command.add_argument(
        "--dry-run", action="store_true", help="only tell the sizes and the memory it takes"
    )
    command.add_argument(
        "--fidelity", action="store_true", help="measure every slice for the manifest"
    )
    _add_prepare_timeout(command)


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_compare)
    _add_source(command, required=False)
    command.add_argument("--recipe", action="append", help="may be repeated")
    command.add_argument(
        "--from-ledger",
        type=Path,
        nargs="?",
        const=default_ledger_path(8000),
        metavar="FILE",
        help="show what live requests said instead; of --model NAME, if given",
    )
    command.add_argument("--hours", type=_hours, metavar="N", help="back, of the ledger")
    command.add_argument("--text", type=Path, metavar="DIR", help="each file is a slice")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    command.add_argument("--png", type=Path, metavar="FILE", help="draw quality against size")
    command.add_argument(
        "--statistics", action="store_true", help="print all of llama.cpp's, for every slice"
    )
    command.add_argument("--max-tokens", type=_positive, metavar="N", help="of each slice")
    command.add_argument("--threads", type=_positive, metavar="N")
    command.add_argument(
        "--memory", type=_size, metavar="SIZE", help="of recipes at a time (default: what is free)"
    )
    command.add_argument(
        "--engine", choices=("embedded", "vllm"), help="measure on vLLM too (default: embedded)"
    )
    command.add_argument(
        "--vllm-python", type=Path, metavar="PATH", help="of the environment that has vLLM"
    )


def _add_search(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_search)
    _add_source(command, required=True)
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument("--budget", metavar="TERMS", help="such as 'kld<=0.05, top1>=0.9'")
    goal.add_argument("--max-bytes", type=_size, metavar="SIZE", help="of the weights, as 90MB")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="recipe to write")
    command.add_argument(
        "--engine", choices=("embedded", "vllm"), help="that will serve it (default: embedded)"
    )
    command.add_argument("--png", type=Path, metavar="FILE", help="draw the frontier")
    command.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write what each layer costs and every artifact that was measured",
    )
    command.add_argument("--calibration", metavar="TEXT", help="a text file or a directory of them")
    command.add_argument("--tokens", type=_positive, metavar="N", help="of the calibration text")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_inspect)
    command.add_argument("directory", type=Path, metavar="DIR", help="of an artifact")
    command.add_argument("--json", action="store_true", help="print the whole manifest")
    command.add_argument("--verify", action="store_true", help="hash every file")


def _add_recipes(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_recipes)
    command.add_argument("name", nargs="?", metavar="NAME", help="print this one as YAML")
    _add_source(command, required=False)


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run_doctor)
    command.add_argument("--config", type=Path, metavar="FILE", help="settings to check, too")
    command.add_argument("--port", type=_port, metavar="N", help="default: 8000")
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_endpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default=_URL, help="of any OpenAI API (default: %(default)s)")
    known = os.environ.get("NARROWGATE_API_KEY") or os.environ.get("OPENAI_API_KEY")
    command.add_argument(
        "--api-key", default=known, metavar="KEY", help="default: from NARROWGATE_API_KEY"
    )


def _add_prepare_timeout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prepare-timeout-s",
        type=_seconds,
        default=PREPARE_TIMEOUT_S,
        metavar="N",
        help="end a preparation that makes no progress for so long (default: %(default)g)",
    )


def _add_source(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--model", required=required, help="'smollm2', a local directory, or a hub id org/name"
    )
    command.add_argument("--revision", help="of a hub id")
