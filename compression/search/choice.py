"""From an allocation to a recipe."""

from collections import Counter
from collections.abc import Mapping, Sequence

from compression.recipe import Calibration, Recipe, Rule
from compression.schemes import Int8, Unquantized
from compression.search.allocation import Allocation
from compression.search.menu import Scheme
from compression.search.units import Unit

TABLES = "embeddings"
"""The name of embedding and output head among the units."""


def recipe_of(
    allocation: Allocation,
    units: Sequence[Unit],
    menu: Mapping[str, Scheme | Unquantized],
    *,
    name: str,
    calibration: Calibration,
) -> Recipe:
    """Return the recipe that gives each unit its chosen scheme.

    The scheme of most modules is the default, each other one is a rule with exact targets.
    """
    modules: dict[str, list[str]] = {}
    for unit in units:
        modules.setdefault(allocation.choices[unit.name].scheme, []).extend(unit.modules)
    is_rounded = allocation.choices[TABLES].scheme == Int8().label
    counts = Counter({scheme: len(found) for scheme, found in modules.items()})
    (default, _), *others = counts.most_common()
    rules = tuple(Rule(targets=tuple(modules[label]), weights=menu[label]) for label, _ in others)
    return Recipe(
        name=name,
        weights=menu[default],
        rules=rules,
        embeddings=Int8() if is_rounded else Unquantized(),
        calibration=calibration,
    )
