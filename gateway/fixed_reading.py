"""How far a sound engine is from the texts that a build kept: read once, before engines start.

It holds for the versions of what computes, and for processors that compute alike. After an upgrade,
and on another kind of processor, a new reading says what is usual.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression.events import OnProgress
from compression.fixed_texts import Reading, limits_of
from compression.processor import instruction_sets
from gateway.errors import ChildFailed, LoadRefused
from gateway.job import run_job
from gateway.program import program

logger = logging.getLogger(__name__)


async def with_reading(
    directory: Path,
    manifest: Mapping[str, Any] | None,
    on_progress: OnProgress,
    *,
    niceness: int = 0,
    stall_s: float | None = None,
) -> Mapping[str, Any] | None:
    """Return an artifact's manifest with a reading that engines here can be held against.

    Where there is none, a process of its own makes it, which holds no more memory than an engine;
    the manifest in ``directory`` is replaced as well. An artifact that keeps no texts, or that
    cannot be read, stays as it is: nothing but the check of its engines depends on it.
    """
    kept = (manifest or {}).get("fixed_texts")
    if not kept or _holds_here(kept["reading"]):
        return manifest
    words = ["-m", "gateway.engine.fixed_texts", f"--model={directory}"]
    try:
        done = await run_job(words, on_progress, niceness=niceness, stall_s=stall_s)
    except (ChildFailed, LoadRefused) as error:
        logger.warning("engines of %s cannot be held against its build: %s", directory, error)
        return manifest
    found: Mapping[str, Any] = done["manifest"]
    _tell_of_upgrade(directory, kept["reading"], found["fixed_texts"]["reading"])
    return found


def _tell_of_upgrade(
    directory: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> None:
    """Warn where a sound engine of other versions is further off than an engine may become.

    What versions compute is taken for usual, so no later check shows it.
    """
    if before is None or before["numerics"] != now["numerics"]:
        return
    limits, found = limits_of(Reading.model_validate(before)), now["distances"]
    worse = [
        f"{name} {found[name]:.4g} nats (before {before['distances'][name]:.4g})"
        for name, limit in limits.items()
        if name in found and not found[name] <= limit
    ]
    if worse:
        logger.warning(
            "%s: engines of %s are further from what the build kept than those of %s were, which "
            "is taken for usual now: %s",
            directory,
            now["version"],
            before["version"],
            ", ".join(worse),
        )


def _holds_here(reading: Mapping[str, Any] | None) -> bool:
    return (
        reading is not None
        and reading["version"] == program()
        and instruction_sets() in reading.get("processors", ())
    )
