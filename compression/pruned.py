"""What a build prunes before it quantizes: a smaller checkpoint aside, gone afterwards."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from compression.events import OnProgress
from compression.facts import read_facts
from compression.plan import Plan, plan_for_pruned
from compression.pruning.record import PruneRecord


@contextmanager
def pruned_plan(
    plan: Plan, windows: Tensor | None, directory: Path, on_progress: OnProgress
) -> Iterator[tuple[Plan, PruneRecord | None]]:
    """Yield the plan as it is, or that for the pruned checkpoint and what pruning says of it.

    The checkpoint lies beside ``directory`` under its name and a suffix, so that what a killed
    build leaves of it is swept with the rest. ``windows`` are the calibration text's token ids
    ``[B, T]``.

    Raises:
        RecipeError: this checkpoint cannot be pruned so.
    """
    if not plan.recipe.prune.is_active:
        yield plan, None
        return
    # It runs transformers' layers, which take seconds to import.
    from compression.pruning.prune import prune_on

    wanted = plan.recipe.prune
    text = windows if wanted.score != "magnitude" or wanted.compensate else None
    prefix = f"{directory.name}-pruned-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=directory.parent) as aside:
        smaller = Path(aside)
        record = prune_on(plan.facts, wanted, text, smaller, on_progress)
        yield plan_for_pruned(plan, read_facts(smaller)), record
