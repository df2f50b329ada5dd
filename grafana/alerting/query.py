"""Pieces of PromQL that several alerts are made of."""

from collections.abc import Sequence

GATEWAY = 'job="narrowgate"'
"""The scrape job of the gateways, as in deploy/prometheus."""

VARIANT = ("job", "instance", "model", "variant")
REPLICA = (*VARIANT, "replica")

SHORT = '"%.3g"'
"""How numbers below 1 are written; `humanize` would say 20m for 0.02."""


def also(condition: str, labels: Sequence[str] = VARIANT) -> str:
    """Return the line that keeps what has a partner with these labels."""
    return f"and on ({', '.join(labels)}) {condition}"


def grown(counter: str, window: str, window_s: int) -> str:
    """Return by how much a counter rose within a window, its very first increment counted in.

    A counter with labels begins to exist at 1, which ``increase`` does not see. One that was not
    there before is taken as it is, if its gateway was seen before or has just started.
    """
    was_seen = f"(up offset {window} == 1 or time() - process_start_time_seconds < {window_s})"
    return (
        f"(\n  ({counter} unless {counter} offset {window})\n"
        f"  {also(was_seen, ('job', 'instance'))}\n"
        f"  or increase({counter}[{window}])\n)"
    )


def told(metric: str, *labels: str) -> str:
    """Return the part of a description that looks a number up, by the alert's labels."""
    selector = ",".join(f"{label}=%q" for label in labels)
    values = " ".join(f"$labels.{label}" for label in labels)
    look = f'printf "{metric}{{{selector}}}" {values} | query'
    found = f"{{{{ . | first | value | printf {SHORT} }}}}"
    return f"{{{{ with {look} }}}}{found}{{{{ else }}}}?{{{{ end }}}}"
