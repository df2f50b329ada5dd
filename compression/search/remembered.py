"""What units cost, remembered: neither another budget nor a search begun anew measures it again."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from compression.digest import source_digest
from compression.events import OnProgress
from compression.facts import CheckpointFacts
from compression.paths import cache_home
from compression.search.costs import Costs
from compression.search.menu import Scheme

_LAYOUT = 2
"""To be raised where quantizers or the table change, so that older figures are not taken."""


def costs_path(
    facts: CheckpointFacts,
    menu: Mapping[str, Scheme],
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


def recall(path: Path) -> Costs:
    """Return what was remembered, of some units or all; nothing where it cannot be read."""
    try:
        return Costs.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Costs()


def remember(path: Path, costs: Costs) -> None:
    """Write the costs, whole or not at all; where that fails, they will be measured again."""
    aside = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(costs.model_dump_json(), encoding="utf-8")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
