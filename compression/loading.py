"""Weights read back from a checkpoint or an artifact, in the form they will be served."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compression.errors import ArtifactError, CorruptCheckpoint
from compression.facts import checkpoint_files
from compression.manifest import Manifest, read_manifest
from compression.packed import Bf16Linear, Int4Linear, Int8Linear, PackedLinear
from compression.packing import unpack_int4
from compression.schemes import Int4, Int8, Unquantized
from compression.weights.codes import Codes
from compression.weights.quantizer import quantize

Weight = Tensor | Codes


class Checkpoint:
    """The open weight files of a checkpoint or artifact; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest | None = read_manifest(directory)
        self._stack = ExitStack()
        self._files: dict[str, safe_open] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for file in checkpoint_files(self.directory):
                try:
                    opened = stack.enter_context(safe_open(self.directory / file, framework="pt"))
                except (SafetensorError, OSError) as error:
                    raise CorruptCheckpoint(f"cannot read {file!r} ({error})") from None
                self._files |= dict.fromkeys(opened.keys(), opened)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def tensor(self, name: str) -> Tensor:
        """Return one tensor as it is stored.

        Raises:
            ArtifactError: there is none of that name.
        """
        if name not in self._files:
            raise ArtifactError(
                f"{str(self.directory)!r} lacks the tensor {name!r}: build it again"
            )
        tensor: Tensor = self._files[name].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def vector(self, name: str) -> Tensor | None:
        """Return a bias or a norm in bf16, or None if there is none of that name."""
        return self.tensor(name).to(torch.bfloat16) if name in self._files else None

    def weight(self, name: str) -> Weight:
        """Return a linear weight: codes where the artifact holds codes, else the tensor."""
        match self._linear_scheme():
            case Unquantized():
                return self.tensor(name)
            case Int8():
                return Codes(
                    codes=self.tensor(name), scales=self.tensor(f"{name}_scale"), zeros=None
                )
            case Int4(symmetric=symmetric):
                columns = int(self.tensor(f"{name}_shape")[1])
                zero_point = None if symmetric else self.tensor(f"{name}_zero_point")
                scales = self.tensor(f"{name}_scale")
                return unpack_int4(self.tensor(f"{name}_packed"), scales, zero_point, columns)

    def embedding(self, name: str) -> Weight:
        """Return the token embedding or the output head under the recipe's embedding scheme."""
        weight = self.tensor(name)
        if self.manifest is None or isinstance(self.manifest.recipe.embeddings, Unquantized):
            return weight
        return quantize(weight, self.manifest.recipe.embeddings)

    def _linear_scheme(self) -> Unquantized | Int8 | Int4:
        return Unquantized() if self.manifest is None else self.manifest.recipe.weights


def make_linear(weight: Weight, bias: Tensor | None) -> PackedLinear:
    """Return the layer that serves ``weight`` on the kernel for its form."""
    if isinstance(weight, Tensor):
        return Bf16Linear(weight, bias)
    if weight.zeros is None:
        return Int8Linear(weight, bias)
    return Int4Linear(weight, bias)


def select_rows(weight: Weight, rows: Tensor) -> Weight:
    """Return ``weight`` with its rows reordered by the index ``rows``."""
    if isinstance(weight, Tensor):
        return weight[rows]
    zeros = None if weight.zeros is None else weight.zeros[rows]
    return Codes(codes=weight.codes[rows], scales=weight.scales[rows], zeros=zeros)


def stack_rows(parts: list[Weight]) -> Weight:
    """Stack weights of one scheme, so that one kernel call serves them all.

    Raises:
        ValueError: the parts have different schemes.
    """
    codes = [part for part in parts if isinstance(part, Codes)]
    dense = [part for part in parts if isinstance(part, Tensor)]
    if not codes:
        return torch.cat(dense)
    if dense:
        raise ValueError("weights of different schemes cannot be fused")
    zeros = [part.zeros for part in codes if part.zeros is not None]
    return Codes(
        codes=torch.cat([part.codes for part in codes]),
        scales=torch.cat([part.scales for part in codes]),
        zeros=torch.cat(zeros) if zeros else None,
    )
