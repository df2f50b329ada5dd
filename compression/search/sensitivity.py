"""What a model loses where one unit alone is rounded: exact, on a short text."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compression.facts import CheckpointFacts
from compression.layerwise import CheckpointWeights, LayerStream
from compression.plan import head_of
from compression.schemes import Int8
from compression.weights.quantizer import quantize

_ROWS = 64
"""Positions whose logits are held at once: few enough for the processor's cache."""


class Sensitivity:
    """Holds the full model in float32 and the probe text's states before every layer.

    A context manager. ``probe`` is token ids ``[windows, tokens]``.
    """

    def __init__(self, facts: CheckpointFacts, probe: Tensor) -> None:
        self._layers: list[nn.Module] = []
        self._states: list[Tensor] = []
        self._stream = LayerStream(facts)
        self._facts = facts
        self._probe = probe
        self._head = self._final = self._log_sums = self._centres = torch.empty(0)

    def __enter__(self) -> "Sensitivity":
        self._stream.__enter__()
        self._head = self._stream.tensor(head_of(self._facts)).to(torch.float32)
        hidden = self._stream.embed(self._probe)
        for index in range(self._facts.architecture.num_layers):
            self._states.append(hidden)
            self._layers.append(self._stream.layer(index))
            hidden = self._run(index, hidden)
        self._final = self._normed(hidden)
        self._log_sums = torch.empty(len(self._final))
        self._centres = torch.empty_like(self._final)
        for rows in self._rows():
            logits = self._final[rows] @ self._head.T
            self._log_sums[rows] = logits.logsumexp(-1)
            self._centres[rows] = logits.softmax(-1) @ self._head
        return self

    def __exit__(self, *details: object) -> None:
        self._stream.__exit__(None, None, None)

    def divergence(self, layer: int, weights: dict[str, Tensor]) -> float:
        """Return the mean KL divergence (nats) with other weights in one layer.

        Of logits ``l`` and ``l'`` under one head it is ``log Σ exp l' - log Σ exp l - p (l' - l)``,
        and ``p (l' - l)`` needs no more than the rows of the head in the mean of ``p``.

        Args:
            layer: its index.
            weights: by module path, in any float dtype.
        """
        before = self._swap(layer, weights)
        try:
            hidden = self._states[layer]
            for index in range(layer, len(self._layers)):
                hidden = self._run(index, hidden)
        finally:
            self._swap(layer, before)
        given = self._normed(hidden)
        shifts = ((given - self._final) * self._centres).sum(-1)
        for rows in self._rows():
            shifts[rows] -= (given[rows] @ self._head.T).logsumexp(-1) - self._log_sums[rows]
        return -float(shifts.mean())

    def tables_divergence(self) -> float:
        """Return the mean KL divergence (nats) with embedding and output head in int8."""
        with LayerStream(self._facts, _RoundedTables(self._facts)) as rounded:
            hidden = rounded.embed(self._probe)
        head = quantize(self._head, Int8()).dequantize()
        for index in range(len(self._layers)):
            hidden = self._run(index, hidden)
        given = self._normed(hidden)
        found = torch.empty(len(given))
        for rows in self._rows():
            wanted = torch.log_softmax(self._final[rows] @ self._head.T, -1)
            actual = torch.log_softmax(given[rows] @ head.T, -1)
            found[rows] = (wanted.exp() * (wanted - actual)).sum(-1)
        return float(found.mean())

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

    def _normed(self, hidden: Tensor) -> Tensor:
        return self._stream.final_norm(hidden).flatten(0, 1)

    def _rows(self) -> Iterator[slice]:
        for start in range(0, len(self._final), _ROWS):
            yield slice(start, start + _ROWS)


class _RoundedTables(CheckpointWeights):
    """A checkpoint whose embedding is rounded to int8, row by row."""

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Return rows of a table as an engine serves them."""
        return quantize(super().rows(name, rows), Int8()).dequantize()
