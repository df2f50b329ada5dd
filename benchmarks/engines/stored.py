"""Runs that are kept together: a run replaces what it measured and leaves the rest as it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MACHINE = ("processor", "cores", "memory_gb", "versions")


def merged(file: Path, fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a run together with those of other models that a file holds.

    What was measured on another machine or with other versions is dropped: its figures would stand
    beside these as if they were comparable.
    """
    if not file.is_file():
        return dict(fresh)
    before = json.loads(file.read_text(encoding="utf-8"))
    if _conditions(before) != _conditions(fresh):
        return dict(fresh)
    together = {part: before[part] | fresh[part] for part in ("models", "memory")}
    return {**fresh, **together}


def _conditions(results: Mapping[str, Any]) -> tuple[Any, ...]:
    machine = results["machine"]
    return results["versions"], *(machine[part] for part in _MACHINE)
