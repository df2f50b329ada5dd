"""Heads taken out of the demo model in memory, by score and compensation."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.divergence import Evaluation, load
from compression.events import ignore
from compression.facts import CheckpointFacts
from compression.first_tokens import first_tokens
from compression.pruning.cut import Projection, slice_projection
from compression.pruning.leave_one_out import leave_one_out
from compression.pruning.scores import fluctuation, head_magnitude, per_head
from compression.pruning.selection import channels, keep_heads
from compression.pruning.shape import pruned_shape
from compression.pruning.statistics import Moments
from compression.recipe import Prune

THIRD = 10
"""Layers of the demo model's thirty that lose a head of each group in the masked runs."""
HEADS = Prune(query_heads=1)
PLANS = (
    ("magnitude", "none"),
    ("fluctuation", "none"),
    ("fluctuation", "bias"),
    ("fluctuation", "weights"),
    ("fluctuation", "weights and bias"),
    ("magnitude", "weights"),
    ("leave-one-out", "weights"),
)
"""Score and compensation of the masked runs; the first one is what the others are held against.

``bias`` is that of FLAP: the mean of what was removed.
"""


class MaskedHeads:
    """One query head of each group removed from some layers: zeros in place of its columns."""

    def __init__(self, facts: CheckpointFacts, windows: Tensor) -> None:
        self._facts = facts
        self._model = load(facts.directory)
        layers = self._model.get_submodule("model.layers").children()
        self._attention = [layer.get_submodule("self_attn") for layer in layers]
        self._weights = [
            _linear(each, "o_proj").weight.detach().clone() for each in self._attention
        ]
        self._moments = self._observe(windows)
        self._windows = windows

    @cached_property
    def _left_out(self) -> Tensor:
        facts = self._facts
        scores = leave_one_out(facts.directory, facts.architecture, HEADS, self._windows, ignore)
        return scores.heads

    def measure(self, evaluation: Evaluation) -> Iterable[dict[str, Any]]:
        """Yield one row for each score and compensation: all layers, and the third it chooses.

        A score chooses the layers whose removed heads stand out least among their layer's heads,
        as FLAP compares layers: by scores standardized within each layer.
        """
        scores: dict[str, Callable[[int], Tensor]] = {
            "magnitude": self._magnitude,
            "fluctuation": self._fluctuation,
            "leave-one-out": lambda layer: self._left_out[layer],
        }
        for score, compensation in PLANS:
            values = [scores[score](layer) for layer in range(len(self._weights))]
            projections = [
                self._projection(layer, value, compensation) for layer, value in enumerate(values)
            ]
            third = self._third(score, values, projections)
            row: dict[str, Any] = {"score": score, "compensation": compensation, "third": third}
            for name, chosen in (("all_layers", range(len(values))), ("a_third", third)):
                self._place({layer: projections[layer] for layer in chosen})
                row[name] = evaluation.kld(self._model)
            yield row

    def _third(self, score: str, values: list[Tensor], projections: list[Projection]) -> list[int]:
        head_dim = self._facts.architecture.head_dim
        costs = []
        for value, projection in zip(values, projections, strict=True):
            kept = projection.kept[::head_dim] // head_dim
            # A divergence compares layers as it is; other scores have a scale of their own.
            scale = value if score == "leave-one-out" else (value - value.mean()) / value.std()
            costs.append(float(scale.sum() - scale[kept].sum()))
        return sorted(sorted(range(len(costs)), key=costs.__getitem__)[:THIRD])

    def _projection(self, layer: int, values: Tensor, compensation: str) -> Projection:
        architecture = self._facts.architecture
        groups = values.view(architecture.num_kv_heads, -1).sum(1)
        kept = keep_heads(values, groups, pruned_shape(HEADS, architecture)).query_heads
        weight, moments = self._weights[layer], self._moments[layer]
        projection = slice_projection(
            weight,
            None,
            channels(kept, architecture.head_dim),
            moments,
            compensate=compensation.startswith("weights"),
            with_bias=compensation == "weights and bias",
        )
        if compensation == "bias":
            lost = weight - projection.masked(weight.shape[1])
            return replace(projection, bias=lost @ moments[:-1, -1])
        return projection

    def _place(self, projections: dict[int, Projection]) -> None:
        for layer, (attention, weight) in enumerate(
            zip(self._attention, self._weights, strict=True)
        ):
            output = _linear(attention, "o_proj")
            projection = projections.get(layer)
            masked = weight if projection is None else projection.masked(weight.shape[1])
            output.weight = nn.Parameter(masked)
            bias = None if projection is None else projection.bias
            output.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]

    @torch.no_grad()
    def _observe(self, windows: Tensor) -> list[Tensor]:
        moments = [Moments(weight.shape[1]) for weight in self._weights]

        def hook(into: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, inputs: into.add(inputs[0].flatten(0, -2))

        handles = [
            _linear(attention, "o_proj").register_forward_pre_hook(hook(each))
            for attention, each in zip(self._attention, moments, strict=True)
        ]
        body = self._model.get_submodule("model")
        for window in windows:
            body(window.unsqueeze(0))
        body(first_tokens(windows))
        for handle in handles:
            handle.remove()
        return [each.matrix() for each in moments]

    def _magnitude(self, layer: int) -> Tensor:
        query = _linear(self._attention[layer], "q_proj").weight
        head_dim = self._facts.architecture.head_dim
        return head_magnitude(query.detach(), self._weights[layer], head_dim)

    def _fluctuation(self, layer: int) -> Tensor:
        moments = self._moments[layer]
        mean, mean_square = moments[:-1, -1], moments.diagonal()[:-1]
        columns = fluctuation(self._weights[layer], mean, mean_square)
        return per_head(columns, self._facts.architecture.head_dim)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear
