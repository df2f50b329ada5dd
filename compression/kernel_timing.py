"""The kernels that an artifact's layers run on here, and their speed against bf16."""

from pathlib import Path

import torch

from compression.crossover import measure_speed
from compression.loading import Checkpoint, make_linear, select_rows
from compression.manifest import KernelRecord
from compression.packed import PackedLinear
from compression.plan import Plan
from compression.requirements import FUSED
from compression.schemes import Unquantized

_SAMPLE_ROWS = 64
"""Kernels work on blocks of up to so many rows; what is left over counts for their choice."""
Unit = tuple[str, ...]
"""Module paths of one layer that run as one."""


def time_kernels(plan: Plan, directory: Path) -> tuple[KernelRecord, ...]:
    """Time one layer of each scheme and shape with one row, from the artifact's own weights.

    Layers that stay as they are, and families that are not known by heart, are left out.
    """
    if plan.facts.known is None:
        return ()
    kinds: dict[tuple[str, int, int], list[Unit]] = {}
    for unit in _units(plan):
        scheme = plan.recipe.scheme_for(unit[0])
        if isinstance(scheme, Unquantized):
            continue
        shapes = [plan.facts.tensors[f"{module}.weight"].shape for module in unit]
        kind = (scheme.label, sum(shape[0] for shape in shapes), shapes[0][1])
        kinds.setdefault(kind, []).append(unit)
    with Checkpoint(directory) as checkpoint:
        return tuple(
            _time(_sample(plan, checkpoint, units[0], rows), rows, len(units))
            for (_, rows, _), units in kinds.items()
        )


def _units(plan: Plan) -> list[Unit]:
    units: list[Unit] = []
    for layer in range(plan.facts.architecture.num_layers):
        modules = [module for module, _ in plan.facts.architecture.linears(layer)]
        fused = [tuple(each for each in modules if each.endswith(names)) for names in FUSED]
        single = [(each,) for each in modules if not any(each in unit for unit in fused)]
        units += [*fused, *single]
    return units


def _sample(plan: Plan, checkpoint: Checkpoint, unit: Unit, rows: int) -> PackedLinear:
    """Return a layer of the unit's first rows: enough to tell how the whole is stored and run."""
    name = f"{unit[0]}.weight"
    some = min(_SAMPLE_ROWS + rows % _SAMPLE_ROWS, plan.facts.tensors[name].shape[0])
    weight = select_rows(checkpoint.weight(name), torch.arange(some))
    return make_linear(weight, None, activations=plan.recipe.activations)


def _time(layer: PackedLinear, rows: int, count: int) -> KernelRecord:
    speed = measure_speed(layer, rows=rows)
    return KernelRecord(
        scheme=layer.scheme,
        rows=rows,
        columns=layer.columns,
        count=count,
        kernel=speed.kernel,
        timed_rows=speed.shape[0],
        microseconds=speed.microseconds,
        bf16_microseconds=speed.bf16_microseconds,
    )
