"""The weights of an artifact as they are served, in float32, tensor by tensor."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from compression.loading import Checkpoint
from compression.recipe import Recipe
from compression.schemes import Int8
from compression.weights.quantizer import quantize


class ServedWeights:
    """Reads an artifact for :class:`compression.layerwise.LayerStream`; a context manager."""

    def __init__(self, directory: Path, recipe: Recipe) -> None:
        self._checkpoint = Checkpoint(directory)
        self._embeddings = recipe.embeddings

    def __enter__(self) -> Self:
        self._checkpoint.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._checkpoint.__exit__(None, None, None)

    def tensor(self, name: str) -> Tensor:
        """Return what the codes stand for, or the tensor where there are none."""
        weight = self._checkpoint.weight(name)
        return weight if isinstance(weight, Tensor) else weight.dequantize()

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Return rows of a table under the scheme that is applied to it at load."""
        table = self._checkpoint.tensor(name)[rows]
        if isinstance(self._embeddings, Int8):
            return quantize(table, self._embeddings.at_load).dequantize()
        return table.to(torch.float32)
