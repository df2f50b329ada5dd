"""Walks through a checkpoint and decides, layer by layer, what stays and how it makes up."""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from compression.facts import CheckpointFacts
from compression.halves import AttentionHalf, Half, MlpHalf
from compression.layerwise import LayerStream
from compression.pruning.cut import LayerCut, Projection, slice_projection
from compression.pruning.leave_one_out import HeadScores
from compression.pruning.passage import Passage
from compression.pruning.scores import (
    fluctuation,
    head_magnitude,
    neuron_magnitude,
    per_head,
)
from compression.pruning.selection import KeptHeads, channels, keep_heads, keep_neurons
from compression.pruning.shape import Shape
from compression.pruning.statistics import Moments
from compression.recipe import Prune


class Cutter:
    """Cuts the layers in order: ``cut(0)``, ``cut(1)``, …; a context manager.

    With a text, each layer is observed on what the pruned layers before it make of that text, so
    that it can make up for them too.
    """

    def __init__(
        self,
        facts: CheckpointFacts,
        prune: Prune,
        shape: Shape,
        windows: Tensor | None,
        head_scores: HeadScores | None,
    ) -> None:
        self._architecture = facts.architecture
        self._prune = prune
        self._shape = shape
        self._windows = windows
        self._head_scores = head_scores
        self._stream = LayerStream(facts)
        self._passage: Passage | None = None

    def __enter__(self) -> Self:
        self._stream.__enter__()
        if self._windows is not None:
            self._passage = Passage(self._stream, self._windows)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.__exit__(kind, error, trace)

    @torch.no_grad()
    def cut(self, index: int) -> LayerCut:
        """Return what stays of layer ``index`` and move the text through it."""
        layer = self._stream.layer(index)
        attention, mlp = AttentionHalf(layer), MlpHalf(layer)
        heads = output = down = None
        if self._prune.query_heads or self._prune.kv_groups:
            heads, output = self._cut_heads(index, attention)
        self._advance(attention, output)
        if self._prune.neurons:
            down = self._cut_neurons(index, mlp)
        self._advance(mlp, down)
        self._stream.release(index)
        return LayerCut(heads, output, down)

    def _cut_heads(self, index: int, half: AttentionHalf) -> tuple[KeptHeads, Projection]:
        moments = self._observe(half)
        head_dim = self._architecture.head_dim
        weight = half.projection.weight
        if self._head_scores is not None:
            scores, groups = self._head_scores.heads[index], self._head_scores.groups[index]
        else:
            if self._prune.score == "fluctuation" and moments is not None:
                scores = per_head(_fluctuation(weight, moments), head_dim)
            else:
                query = half.block.get_submodule("q_proj").weight
                scores = head_magnitude(query, weight, head_dim)  # type: ignore[arg-type]
            groups = scores.view(self._architecture.num_kv_heads, -1).sum(1)
        kept = keep_heads(scores, groups, self._shape)
        projection = self._slice(
            f"model.layers.{index}.self_attn.o_proj",
            channels(kept.query_heads, head_dim),
            moments,
            with_bias=self._shape.form.output_bias,
        )
        return kept, projection

    def _cut_neurons(self, index: int, half: MlpHalf) -> Projection:
        moments = self._observe(half)
        weight = half.projection.weight
        if self._prune.score != "magnitude" and moments is not None:
            scores = _fluctuation(weight, moments)
        else:
            gate = half.block.get_submodule("gate_proj").weight
            up = half.block.get_submodule("up_proj").weight
            scores = neuron_magnitude(gate, up, weight)  # type: ignore[arg-type]
        return self._slice(
            f"model.layers.{index}.mlp.down_proj",
            keep_neurons(scores, self._shape.neurons),
            moments,
            with_bias=self._shape.form.mlp_bias,
        )

    def _slice(
        self, module: str, kept: Tensor, moments: Tensor | None, *, with_bias: bool
    ) -> Projection:
        return slice_projection(
            self._stream.tensor(f"{module}.weight"),
            self._stream.tensor(f"{module}.bias") if self._architecture.has_bias(module) else None,
            kept,
            moments,
            compensate=self._prune.compensate,
            with_bias=with_bias,
        )

    def _observe(self, half: Half) -> Tensor | None:
        """Return the moments of the projection's inputs; None without a text."""
        if self._passage is None:
            return None
        moments = Moments(half.projection.in_features)
        self._passage.observe(half, moments.add)
        return moments.matrix()

    def _advance(self, half: Half, projection: Projection | None) -> None:
        """Move the text through a half whose projection is the pruned one."""
        if self._passage is None:
            return
        if projection is not None:
            masked = projection.masked(half.projection.in_features)
            half.projection.weight = nn.Parameter(masked)
            if projection.bias is not None:
                half.projection.bias = nn.Parameter(projection.bias.to(torch.float32))
        self._passage.advance(half)


def _fluctuation(weight: Tensor, moments: Tensor) -> Tensor:
    return fluctuation(weight, mean=moments[:-1, -1], mean_square=moments.diagonal()[:-1])
