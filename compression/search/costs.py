"""The table that a search solves: what each unit costs under each scheme, and what it takes."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from compression.facts import ITEMSIZE, CheckpointFacts
from compression.plan import EMBEDDINGS
from compression.schemes import Int8, Unquantized
from compression.search.allocation import Option
from compression.search.menu import Scheme
from compression.search.units import Unit


class Costs(BaseModel):
    """What was measured of every unit so far, by its name."""

    output_errors: dict[str, dict[str, float]] = {}
    """Errors of a unit's own output, E‖(W' - W) x‖² / E‖W x‖², by the scheme's label."""
    divergences: dict[str, float] = {}
    """The model's mean KL divergence (nats) with that unit alone rounded: a unit's under the first
    scheme of the menu, that of embedding and output head under int8."""


def cost_table(
    units: Sequence[Unit], costs: Costs, menu: Mapping[str, Scheme]
) -> dict[str, list[Option]]:
    """Return the options of every unit, "none" (bf16) among them.

    Only the first scheme's divergence was measured; others are set in proportion to their output
    error.

    Args:
        units: all of a model.
        costs: of each of them.
        menu: schemes by label.
    """
    first = next(iter(menu))
    table: dict[str, list[Option]] = {}
    for unit in units:
        measured, errors = costs.divergences[unit.name], costs.output_errors[unit.name]
        options = [Option("none", _bytes(unit, Unquantized()), 0.0)]
        for label, scheme in menu.items():
            share = errors[label] / errors[first] if errors[first] > 0 else 0.0
            options.append(Option(label, _bytes(unit, scheme), measured * share))
        table[unit.name] = options
    return table


def tables_options(facts: CheckpointFacts, divergence: float) -> list[Option]:
    """Return the options of embedding and output head: int8 rows, or as they are.

    ``divergence`` is the measured KL divergence of the model with both in int8.
    """
    tables = [facts.tensors[name] for name in sorted(EMBEDDINGS) if name in facts.tensors]

    def num_bytes(scheme: Int8 | Unquantized) -> int:
        total = 0
        for each in tables:
            rows, columns = each.shape
            total += scheme.memory_bytes(rows, columns, ITEMSIZE[each.dtype])
        return total

    return [
        Option(Unquantized().label, num_bytes(Unquantized()), 0.0),
        Option(Int8().label, num_bytes(Int8()), divergence),
    ]


def _bytes(unit: Unit, scheme: Scheme | Unquantized) -> int:
    return sum(scheme.memory_bytes(rows, columns, 2) for _, (rows, columns) in unit.shapes)
