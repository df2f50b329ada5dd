"""The child process behind ``narrowgate search`` (see :mod:`compression.child`).

The last line is ``found`` with the report, or ``error``.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compression.child import report_progress, run_child
from compression.errors import SearchError
from compression.presets import SUFFIXES, parse_recipe, recipe_yaml
from compression.recipe import BUILT_IN, Calibration, Recipe
from compression.report.files import require_writable, write_json, write_text
from compression.search.budget import mean_kld, parse_budget, worst_kld
from compression.search.search import Found, Trial


def main(arguments: list[str] | None = None) -> int:
    """Run the search and return the exit code."""
    options = _parser().parse_args(arguments)
    return run_child(lambda: ("found", {"report": _run(options)}))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    """Check everything that can be checked at once, search, write what was asked for."""
    if (options.budget is None) == (options.max_bytes is None):
        raise SearchError("give either --budget or --max-bytes")
    budget = None if options.budget is None else parse_budget(options.budget)
    if options.out.suffix not in SUFFIXES:
        raise SearchError(f"--out {str(options.out)!r} must end in .yaml: --recipe reads no other")
    require_writable({"--out": options.out, "--png": options.png, "--json": options.json})
    name = options.out.stem.lower()
    # Refuses a name that no recipe can have before anything is measured.
    parse_recipe({"weights": {"scheme": "none"}}, where=str(options.out), default_name=name)
    calibration = _calibration(options)
    # Imported last: it takes seconds, which no refusal above needs.
    from compression.search.frontier_plot import plot
    from compression.search.session import Session

    session = Session(
        options.model,
        options.revision,
        name=name,
        calibration=calibration,
        engine=options.engine,
        on_progress=report_progress,
    )
    found = session.fit(options.max_bytes) if budget is None else session.find(budget)
    write_recipe(found.best.recipe, options.out)
    if options.png is not None:
        plot(found, options.png)
    outcome = report(found, options)
    if options.json is not None:
        write_json(outcome, options.json)
    return outcome


def _calibration(options: argparse.Namespace) -> Calibration:
    try:
        return Calibration(text=options.calibration, tokens=options.tokens)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        flag = {"text": "--calibration", "tokens": "--tokens"}[str(problem["loc"][0])]
        raise SearchError(f"{flag} is {problem['input']!r}: {problem['msg']}") from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as the YAML that ``--recipe`` reads, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    write_text(recipe_yaml(recipe), path)


def report(found: Found, options: argparse.Namespace) -> dict[str, Any]:
    """Return the outcome as plain data."""
    beside = found.best.bytes_in_memory - found.best.matrix_bytes
    return {
        "model": options.model,
        "engine": options.engine,
        "recipe": str(options.out),
        "budget": options.budget,
        "max_bytes": options.max_bytes,
        "calibration": found.best.recipe.calibration.model_dump(mode="json"),
        "best": _row(found.best),
        "trials": [_row(trial) for trial in found.trials],
        "units": {
            name: [{"scheme": o.scheme, "bytes": o.num_bytes, "cost": o.cost} for o in options]
            for name, options in found.units.items()
        },
        "frontier": [
            {"bytes": size + beside, "sum_of_unit_costs": cost} for size, cost in found.expected
        ],
    }


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "recipe_digest": trial.recipe.digest,
        "recipe": trial.recipe.model_dump(mode="json"),
        "bytes": trial.bytes_in_memory,
        "bytes_stored": trial.bytes_stored,
        "linear_bits_stored": trial.linear_bits_stored,
        "sum_of_unit_costs": trial.expected_kld,
        "kld": mean_kld(trial.slices),
        "worst_slice_kld": worst_kld(trial.slices),
        "slices": [each.model_dump(mode="json") for each in trial.slices],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compression.search", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--budget", help="such as kld<=0.05,worst_slice_kld<=0.1")
    parser.add_argument("--max-bytes", type=int)
    parser.add_argument("--calibration", default=BUILT_IN)
    parser.add_argument("--tokens", type=int, default=Calibration().tokens)
    parser.add_argument("--engine", choices=("embedded", "vllm"), default="embedded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
