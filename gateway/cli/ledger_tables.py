"""``narrowgate compare --from-ledger``: what scored requests said, from the service's own file."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.table import Table

from gateway.errors import SettingsError
from gateway.shadow.ledger_entry import SliceAggregate
from gateway.shadow.ledger_file import Window, read_aggregates
from gateway.shadow.slices import ALL
from gateway.terminal import Terminal

_Z95 = 1.96
_OF_NEW_MEASUREMENTS = ("recipe", "revision", "text", "html", "png", "max_tokens", "threads")


def run_from_ledger(options: argparse.Namespace, terminal: Terminal) -> int:
    """Show the figures of a ledger; it may be written meanwhile."""
    for flag in _OF_NEW_MEASUREMENTS:
        if getattr(options, flag) is not None:
            raise SettingsError(
                f"--{flag.replace('_', '-')} describes a new measurement: leave it out beside "
                "--from-ledger"
            )
    path: Path = options.from_ledger
    since = 0.0 if options.hours is None else time.time() - 3600 * options.hours
    found = read_aggregates(path, Window(since=since, model=options.model))
    if options.json is not None:
        write_json(options.json, found)
    if found:
        terminal.show(tables(found))
    else:
        terminal.note(f"the ledger {path} has no scored request of this kind")
    return 0


def write_json(path: Path, aggregates: Sequence[SliceAggregate]) -> None:
    """Write all figures.

    Raises:
        SettingsError: the file cannot be written.
    """
    try:
        path.write_bytes(orjson.dumps([asdict(each) for each in aggregates]))
    except OSError as error:
        raise SettingsError(f"cannot write --json {path}: {error.strerror}") from None


def tables(aggregates: Sequence[SliceAggregate]) -> list[Table]:
    """Return a table for each variant and way of scoring; the whole first, then worst slices."""
    groups: dict[tuple[str, ...], list[SliceAggregate]] = {}
    for each in aggregates:
        key = (
            each.model,
            each.variant,
            each.estimator,
            each.recipe_digest[:12],
            each.reference_digest,
        )
        groups.setdefault(key, []).append(each)
    return [_table(key, group) for key, group in groups.items()]


def _table(key: tuple[str, ...], group: Sequence[SliceAggregate]) -> Table:
    model, variant, estimator, digest, reference = key
    title = f"{model}@{variant} {digest} against {reference} ({estimator})"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("slice", no_wrap=True)
    for heading in ("requests", "tokens", "KLD, nats", "95 %", "largest", "top-1", "dNLL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in sorted(group, key=lambda each: (each.slice != ALL, -(each.mean_divergence or 0))):
        table.add_row(*_row(each))
    return table


def _row(each: SliceAggregate) -> list[str]:
    error = each.standard_error
    return [
        each.slice,
        f"{each.num_requests:,}",
        f"{each.num_tokens:,}",
        _nats(each.mean_divergence),
        "-" if error is None else f"± {_Z95 * error:.2g}",
        _nats(each.max_divergence),
        f"{each.agreement:.1%}",
        _nats(each.delta_nll),
    ]


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
