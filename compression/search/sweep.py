"""The costs of all units in one pass through the layers.

A layer's inputs are observed once; each of its units is rounded under every scheme on them, and
the model with that unit alone rounded is measured at once, so that nothing but figures is kept.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from compression.calibration import Calibrator, all_processors
from compression.facts import CheckpointFacts
from compression.layerwise import LayerStream
from compression.search.choice import TABLES
from compression.search.costs import Costs
from compression.search.menu import Scheme
from compression.search.sensitivity import Sensitivity
from compression.search.units import Unit, units
from compression.weights.quantizer import quantize_measured
from compression.weights.statistics import InputStatistics


def is_complete(costs: Costs, plan: Sequence[Unit]) -> bool:
    """Return whether every unit's costs are known, and those of the tables."""
    return TABLES in costs.divergences and all(unit.name in costs.divergences for unit in plan)


def measure_costs(
    facts: CheckpointFacts,
    windows: Tensor,
    probe: Tensor,
    menu: Mapping[str, Scheme],
    costs: Costs,
    on_layer: Callable[[], None],
) -> None:
    """Put into ``costs`` what it lacks.

    Args:
        facts: of a known family.
        windows: token ids ``[windows, tokens]`` on which units are rounded.
        probe: token ids ``[windows, tokens]`` on which the model is measured.
        menu: schemes by label; every unit's columns divide into their groups.
        costs: what is known of earlier passes.
        on_layer: is called whenever ``costs`` holds one more layer.

    Raises:
        CorruptCheckpoint: a weight holds NaN or infinite values.
    """
    plan = list(units(facts.architecture))
    with (
        Sensitivity(facts, probe) as sensitivity,
        Calibrator(facts, windows, whole=True) as calibrator,
        LayerStream(facts) as stream,
    ):
        if TABLES not in costs.divergences:
            costs.divergences[TABLES] = sensitivity.tables_divergence()
        for layer in range(facts.architecture.num_layers):
            left = [
                unit for unit in plan if unit.layer == layer and unit.name not in costs.divergences
            ]
            if not left:
                calibrator.skip(layer)
                continue
            [statistics] = calibrator.stages(layer)
            for unit in left:
                errors, rounded = _round(unit, stream, statistics[unit.name], menu)
                with all_processors():
                    divergence = sensitivity.divergence(layer, rounded)
                costs.output_errors[unit.name] = errors
                costs.divergences[unit.name] = divergence
            on_layer()


def _round(
    unit: Unit, stream: LayerStream, statistics: InputStatistics, menu: Mapping[str, Scheme]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the output error of a unit under each scheme, and its weights under the first one.

    Modules of a unit read one input and rows are rounded each by itself, so all are taken at once.
    """
    names = [f"{module}.weight" for module in unit.modules]
    weight = torch.cat([stream.tensor(name).to(torch.float32) for name in names])
    workers = len(os.sched_getaffinity(0))
    errors: dict[str, float] = {}
    rounded: dict[str, Tensor] = {}
    for label, scheme in menu.items():
        made = quantize_measured(weight, scheme, statistics=statistics, workers=workers)
        errors[label] = made.output_error or 0.0
        if not rounded:
            rows = [shape[0] for _, shape in unit.shapes]
            parts = torch.split(made.codes.dequantize(), rows)
            rounded = dict(zip(unit.modules, parts, strict=True))
    return errors, rounded
