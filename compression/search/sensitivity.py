"""What each unit costs under each scheme: the table that a search solves.

One scheme is measured exactly: the KL divergence of the model in which only that unit is rounded,
for every unit; embedding and output head are one more. Other schemes are set in proportion to their
error on the unit's output, which the same calibration text gives without another forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.calibration import Calibrator
from compression.errors import SearchError
from compression.events import OnProgress, Progress
from compression.facts import CheckpointFacts
from compression.layerwise import CheckpointWeights, LayerStream
from compression.schemes import Int4, Int8
from compression.search.units import Unit, units
from compression.weights.quantizer import quantize, quantize_measured
from compression.weights.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class UnitErrors:
    """What rounding one unit does to its own output, and the weights of the probed scheme."""

    unit: Unit
    output_errors: dict[str, float]
    """Mean over modules of E‖(W' - W) x‖² / E‖W x‖², by the scheme's label."""
    probe: dict[str, Tensor]
    """bf16 weights under the first scheme of the menu, by module path."""


class Sensitivity:
    """Holds the full model in float32 and the probe text's states before every layer."""

    def __init__(self, facts: CheckpointFacts, probe: Tensor) -> None:
        self._layers: list[nn.Module] = []
        self._states: list[Tensor] = []
        self._stream = LayerStream(facts)
        self._facts = facts
        self._probe = probe
        self._expected = torch.empty(0)

    def __enter__(self) -> "Sensitivity":
        self._stream.__enter__()
        hidden = self._stream.embed(self._probe)
        for index in range(self._facts.architecture.num_layers):
            self._states.append(hidden)
            self._layers.append(self._stream.layer(index))
            hidden = self._run(index, hidden)
        self._expected = self._log_probabilities(hidden)
        return self

    def __exit__(self, *details: object) -> None:
        self._stream.__exit__(None, None, None)

    def divergence(self, layer: int, weights: dict[str, Tensor]) -> float:
        """Return the mean KL divergence (nats) with other weights in one layer.

        Args:
            layer: its index.
            weights: by module path, in any float dtype.
        """
        before = self._swap(layer, weights)
        try:
            hidden = self._states[layer]
            for index in range(layer, len(self._layers)):
                hidden = self._run(index, hidden)
            given = self._log_probabilities(hidden)
        finally:
            self._swap(layer, before)
        return float((self._expected.exp() * (self._expected - given)).sum(-1).mean())

    def tables_divergence(self) -> float:
        """Return the mean KL divergence (nats) with embedding and output head in int8."""
        with LayerStream(self._facts, _RoundedTables(self._facts)) as rounded:
            hidden = rounded.embed(self._probe)
            for index in range(len(self._layers)):
                hidden = self._run(index, hidden)
            normed = self._stream.final_norm(hidden).flatten(0, 1)
            given = torch.log_softmax(rounded.logits(normed), dim=-1)
        return float((self._expected.exp() * (self._expected - given)).sum(-1).mean())

    def _swap(self, layer: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        before = {}
        for module, weight in weights.items():
            name = module.removeprefix(f"model.layers.{layer}.")
            held = self._layers[layer].get_submodule(name).weight
            before[module] = held.detach().clone()  # type: ignore[operator]
            with torch.no_grad():
                held.copy_(weight)  # type: ignore[operator]
        return before

    def _run(self, index: int, hidden: Tensor) -> Tensor:
        return torch.cat(list(self._stream.run(self._layers[index], hidden)))

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        normed = self._stream.final_norm(hidden).flatten(0, 1)
        return torch.log_softmax(self._stream.logits(normed), dim=-1)


class _RoundedTables(CheckpointWeights):
    """A checkpoint whose embedding and output head are rounded to int8, row by row."""

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Return rows of a table as an engine serves them."""
        return quantize(super().rows(name, rows), Int8()).dequantize()


def unit_errors(
    facts: CheckpointFacts,
    windows: Tensor,
    menu: Sequence[Int4 | Int8],
    workers: int,
    on_progress: OnProgress,
) -> list[UnitErrors]:
    """Quantize every unit under every scheme of the menu, each on its own.

    Raises:
        SearchError: a scheme of the menu does not fit a module's shape.
    """
    found: list[UnitErrors] = []
    plan = list(units(facts.architecture))
    with Calibrator(facts, windows, whole=True) as calibrator, LayerStream(facts) as stream:
        for layer in range(facts.architecture.num_layers):
            [statistics] = calibrator.stages(layer)
            found.extend(
                _errors(unit, stream, statistics, menu, workers)
                for unit in plan
                if unit.layer == layer
            )
            on_progress(Progress("search", layer + 1, facts.architecture.num_layers, "layers"))
    return found


def _errors(
    unit: Unit,
    stream: LayerStream,
    statistics: dict[str, InputStatistics],
    menu: Sequence[Int4 | Int8],
    workers: int,
) -> UnitErrors:
    errors: dict[str, float] = {}
    probe: dict[str, Tensor] = {}
    for scheme in menu:
        found = []
        for module, (_, columns) in unit.shapes:
            if isinstance(scheme, Int4) and columns % scheme.group_size:
                raise SearchError(
                    f"{module!r} has {columns} columns, no multiple of {scheme.group_size}: "
                    "search with a smaller --group-size"
                )
            weight = stream.tensor(f"{module}.weight").to(torch.float32)
            made = quantize_measured(weight, scheme, statistics=statistics[module], workers=workers)
            found.append(made.output_error or 0.0)
            if scheme is menu[0]:
                probe[module] = made.codes.dequantize().to(torch.bfloat16)
        errors[scheme.label] = sum(found) / len(found)
    return UnitErrors(unit, errors, probe)
