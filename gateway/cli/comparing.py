"""``narrowgate compare`` and ``narrowgate search``: recipes, measured."""

import argparse
import sys

from gateway.cli.jobs import run_job, source
from gateway.comparisons.command import CompareCommand
from gateway.errors import SettingsError
from gateway.terminal import Terminal

_ENDED = "Ended. What was measured is kept: the same command goes on from there."


def run_compare(options: argparse.Namespace, terminal: Terminal) -> int:
    """Measure recipes against the full model, or show what live requests said."""
    if options.from_ledger is not None:
        from gateway.cli.ledger_tables import run_from_ledger

        return run_from_ledger(options, terminal)
    if options.hours is not None:
        raise SettingsError("--hours needs --from-ledger: it bounds what is read of that file")
    if options.model is None or not options.recipe:
        raise SettingsError("compare needs --model and --recipe, or --from-ledger")
    # Only this command needs it, and serving should stay small.
    from compression.report.tables import render_tables

    command = CompareCommand(
        model=options.model,
        recipe=options.recipe,
        revision=options.revision,
        text=options.text,
        json=options.json,
        html=options.html,
        png=options.png,
        max_tokens=options.max_tokens,
        threads=options.threads,
        memory=options.memory,
        engine=options.engine,
        vllm_python=options.vllm_python,
    )
    code, compared = run_job(command.words(), terminal)
    if compared is not None:
        terminal.show(render_tables(compared["report"], statistics=options.statistics))
    return code


def run_search(options: argparse.Namespace, terminal: Terminal) -> int:
    """Find the smallest recipe within a budget."""
    from compression.search.tables import render_search

    words = ["-m", "compression.search", *source(options), f"--out={options.out}"]
    for flag in ("budget", "max_bytes", "engine", "png", "json", "calibration", "tokens"):
        if (value := getattr(options, flag)) is not None:
            words += [f"--{flag.replace('_', '-')}={value}"]
    code, found = run_job(words, terminal)
    if found is None:
        print(_ENDED, file=sys.stderr)
    else:
        terminal.show(render_search(found["report"]))
        terminal.note(
            f"The chosen recipe is in {options.out}: serve it with --recipe {options.out}"
        )
    return code
