"""``narrowgate models``: what a running endpoint serves."""

import argparse
from collections.abc import Mapping
from typing import Any

import orjson
from rich.table import Table

from gateway.cli.remote import Endpoint
from gateway.terminal import Terminal


def run_models(options: argparse.Namespace, terminal: Terminal) -> int:
    """Show the models of a running endpoint."""
    with Endpoint(options.url, options.api_key) as endpoint:
        cards = endpoint.models()
    if options.json:
        terminal.note(orjson.dumps(cards, option=orjson.OPT_INDENT_2).decode())
    elif cards:
        terminal.show([_table(cards)])
    else:
        terminal.note("no models")
    return 0


def _table(cards: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("model", "variant", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("bits", "memory", "of", "context"):
        table.add_column(title, justify="right", no_wrap=True)
    for card in cards:
        table.add_row(*_row(card))
    return table


def _row(card: Mapping[str, Any]) -> list[str]:
    bits, context = card.get("weight_bits"), card.get("max_model_len")
    return [
        str(card.get("id", "")),
        str(card.get("variant") or "-"),
        str(card.get("state") or "-"),
        f"{bits:.2f}" if isinstance(bits, int | float) else "-",
        _megabytes(card.get("weights_bytes")),
        _megabytes(card.get("weights_uncompressed_bytes")),
        str(context) if isinstance(context, int) else "-",
    ]


def _megabytes(value: object) -> str:
    return f"{value / 1e6:.1f} MB" if isinstance(value, int) else "-"
