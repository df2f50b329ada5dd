"""What units cost, remembered: another budget for the same model and text need not measure."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError
from torch import Tensor

from compression.digest import source_digest
from compression.events import OnProgress
from compression.facts import CheckpointFacts
from compression.paths import cache_home
from compression.schemes import Int4, Int8

_LAYOUT = 1
"""To be raised where quantizers or the table change, so that older figures are not taken."""


class Costs(BaseModel):
    """What was measured of every unit, by its name."""

    output_errors: dict[str, dict[str, float]]
    """Errors of a unit's own output, by the scheme's label."""
    divergences: dict[str, float]
    """The model's mean KL divergence (nats) with that unit alone rounded."""


def costs_path(
    facts: CheckpointFacts,
    menu: Mapping[str, Int4 | Int8],
    texts: Sequence[Tensor],
    on_progress: OnProgress,
) -> Path:
    """Return where the costs of this checkpoint, menu and text (token ids) are remembered."""
    key = hashlib.sha256(f"{_LAYOUT}:{source_digest(facts, on_progress)}".encode())
    for scheme in menu.values():
        key.update(scheme.model_dump_json().encode())
    for ids in texts:
        key.update(repr(ids.tolist()).encode())
    return cache_home() / "search" / f"{key.hexdigest()[:32]}.json"


def recall(path: Path) -> Costs | None:
    """Return what was remembered; None where nothing is, or nothing that can be read."""
    try:
        return Costs.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def remember(path: Path, costs: Costs) -> None:
    """Write the costs; where that fails, the next search measures them again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(costs.model_dump_json(), encoding="utf-8")
        aside.replace(path)
