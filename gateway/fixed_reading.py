"""How far a sound engine is from the texts that a build kept: read once, behind the build."""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compression.events import OnProgress
from gateway.errors import ChildFailed, LoadRefused
from gateway.job import run_job

logger = logging.getLogger(__name__)


async def with_reading(
    directory: Path,
    manifest: Mapping[str, Any] | None,
    on_progress: OnProgress,
    *,
    niceness: int = 0,
    stall_s: float | None = None,
) -> Mapping[str, Any] | None:
    """Return an artifact's manifest with the reading of this version's engine, made if need be.

    The manifest in ``directory`` is replaced as well. An artifact that keeps no texts, or that
    cannot be read, stays as it is: nothing but the check of its engines depends on it.
    """
    kept = (manifest or {}).get("fixed_texts")
    if not kept or (kept["reading"] or {}).get("version") == version("narrowgate"):
        return manifest
    words = ["-m", "gateway.engine.fixed_texts", f"--model={directory}"]
    try:
        done = await run_job(words, on_progress, niceness=niceness, stall_s=stall_s)
    except (ChildFailed, LoadRefused) as error:
        logger.warning("engines of %s cannot be held against its build: %s", directory, error)
        return manifest
    found: Mapping[str, Any] = done["manifest"]
    return found
