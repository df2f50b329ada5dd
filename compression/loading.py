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
from compression.manifest import Manifest, read_manifest, weight_files
from compression.packed import (
    Bf16Linear,
    Int8DynamicLinear,
    Int8Linear,
    PackedLinear,
    make_grouped_linear,
    make_nf4_linear,
)
from compression.packing import unpack_grouped, unpack_nf4
from compression.recipe import Activations
from compression.schemes import Unquantized
from compression.verification import require_unchanged
from compression.weights.codes import Codes
from compression.weights.nf4 import Nf4Codes, stack_nf4
from compression.weights.quantizer import quantize

Weight = Tensor | Codes | Nf4Codes
_PIECE_BYTES = 8 << 20
"""Of a table in float32 that are quantized at once."""


class Checkpoint:
    """The open weight files of a checkpoint or artifact; a context manager.

    Raises:
        ArtifactError: an artifact's manifest is unreadable, or a file was changed after the build.
        CorruptCheckpoint: a file is missing or no safetensors file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest | None = read_manifest(directory)
        self._stack = ExitStack()
        self._files: dict[str, safe_open] = {}

    def __enter__(self) -> Self:
        if self.manifest is not None:
            require_unchanged(self.directory, self.manifest)
        with ExitStack() as stack:
            for file in self._weight_files():
                try:
                    opened = stack.enter_context(safe_open(self.directory / file, framework="pt"))
                except (SafetensorError, OSError) as error:
                    raise CorruptCheckpoint(f"cannot read {file!r} ({error})") from None
                self._files |= dict.fromkeys(opened.keys(), opened)
            self._stack = stack.pop_all()
        return self

    def _weight_files(self) -> tuple[str, ...]:
        """Return the files to open: of an artifact those that its manifest names, and no other."""
        if self.manifest is not None:
            return weight_files(self.manifest)
        return checkpoint_files(self.directory)

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
        """Return a linear weight: codes where the artifact holds codes, else the tensor.

        Each weight is told by the tensors that lie beside it, so that schemes can be mixed.
        """
        state, scales = f"{name}.quant_state.bitsandbytes__nf4", f"{name}_scale"
        if state in self._files:
            return unpack_nf4(self.tensor(name), self.tensor(f"{name}.absmax"), self.tensor(state))
        if scales not in self._files:
            return self.tensor(name)
        if f"{name}_packed" not in self._files:
            return Codes(codes=self.tensor(name), scales=self.tensor(scales), zeros=None, bits=8)
        columns = int(self.tensor(f"{name}_shape")[1])
        zeros = f"{name}_zero_point"
        zero_point = self.tensor(zeros) if zeros in self._files else None
        packed = self.tensor(f"{name}_packed")
        return unpack_grouped(packed, self.tensor(scales), zero_point, columns)

    def holds_codes(self, name: str) -> bool:
        """Return whether a linear weight is held as codes of a scheme."""
        beside = (f"{name}.quant_state.bitsandbytes__nf4", f"{name}_scale")
        return any(each in self._files for each in beside)

    @property
    def activations(self) -> Activations:
        """Return how the recipe wants the inputs of int8 layers."""
        return "none" if self.manifest is None else self.manifest.recipe.activations

    def embedding(self, name: str) -> Weight:
        """Return the token embedding or the output head under the recipe's embedding scheme."""
        weight = self.tensor(name)
        scheme = None if self.manifest is None else self.manifest.recipe.embeddings
        if scheme is None or isinstance(scheme, Unquantized):
            return weight
        # By rows, so pieces give the codes of the whole; float32 copies of all would fill memory.
        rows = max(1, _PIECE_BYTES // (4 * weight.shape[1]))
        return stack_rows([quantize(piece, scheme.at_load) for piece in torch.split(weight, rows)])


def make_linear(
    weight: Weight, bias: Tensor | None, *, activations: Activations = "none"
) -> PackedLinear:
    """Return the layer that serves ``weight`` on the kernel for its form.

    ``activations`` is the recipe's; weights that are not int8 take their inputs as they are.
    """
    if isinstance(weight, Tensor):
        return Bf16Linear(weight, bias)
    if isinstance(weight, Nf4Codes):
        return make_nf4_linear(weight, bias)
    if weight.zeros is not None:
        return make_grouped_linear(weight, bias)
    return Int8Linear(weight, bias) if activations == "none" else Int8DynamicLinear(weight, bias)


def select_rows(weight: Weight, rows: Tensor) -> Weight:
    """Return ``weight`` with its rows reordered by the index ``rows``.

    Raises:
        ArtifactError: the weight is nf4 and its blocks reach across rows.
    """
    return weight[rows] if isinstance(weight, Tensor) else weight.select_rows(rows)


def _kind(part: Weight) -> tuple[object, ...]:
    """Return what parts must have in common to be stacked."""
    if isinstance(part, Codes):
        return Codes, part.bits, part.zeros is None, part.scales.shape[1]
    return (type(part),)


def can_stack(parts: list[Weight]) -> bool:
    """Return whether weights have one scheme, so that :func:`stack_rows` takes them."""
    return len({_kind(part) for part in parts}) == 1


def stack_rows(parts: list[Weight]) -> Weight:
    """Stack weights of one scheme, so that one kernel call serves them all.

    Raises:
        ValueError: the parts have different schemes.
        ArtifactError: the weights are nf4 and their blocks reach across rows.
    """
    if not can_stack(parts):
        raise ValueError("weights of different schemes cannot be fused")
    dense = [part for part in parts if isinstance(part, Tensor)]
    nf4 = [part for part in parts if isinstance(part, Nf4Codes)]
    codes = [part for part in parts if isinstance(part, Codes)]
    if dense:
        return torch.cat(dense)
    if nf4:
        return stack_nf4(nf4)
    zeros = [part.zeros for part in codes if part.zeros is not None]
    return Codes(
        codes=torch.cat([part.codes for part in codes]),
        scales=torch.cat([part.scales for part in codes]),
        zeros=torch.cat(zeros) if zeros else None,
        bits=codes[0].bits,
    )
