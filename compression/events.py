"""Progress of long work, as values that cross a process border as JSON lines."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Stage = Literal[
    "fetch",
    "convert",
    "hash",
    "wait",
    "prune",
    "quantize",
    "measure",
    "search",
    "start",
    "compare",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` units of one stage; ``total`` 0 means unknown."""

    stage: Stage
    done: int
    total: int
    unit: Literal["bytes", "tensors", "tokens", "steps", "layers", "units"]
    detail: str = ""


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Drop an event; the default where nobody watches."""


def encode(kind: str, fields: dict[str, Any]) -> str:
    """Return one JSON line ``{"event": kind, **fields}`` without the newline."""
    return json.dumps({"event": kind, **fields}, ensure_ascii=False, separators=(",", ":"))


def encode_progress(progress: Progress) -> str:
    """Return one JSON line for a progress event."""
    return encode("progress", asdict(progress))


def decode(line: str) -> dict[str, Any]:
    """Parse one JSON line.

    Raises:
        ValueError: the line is no event.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict) or "event" not in fields:
        raise ValueError(f"not an event: {line[:80]!r}")
    return fields
