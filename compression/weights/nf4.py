"""NormalFloat4 as bitsandbytes stores it (Dettmers et al. 2023, arXiv 2305.14314).

Each value is the nearest of sixteen quantiles of the normal distribution, scaled by the largest
magnitude of the 64 values that it shares a block with. Blocks run along the flattened weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.errors import ArtifactError, BuildError
from compression.schemes import NF4_BLOCK, Nf4

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The sixteen values, exact in f32: ``quant_map`` of bitsandbytes."""
_CHUNK = 16384 * NF4_BLOCK
"""Values quantized at a time, so that the f32 copies stay small."""


@dataclass(frozen=True, slots=True)
class Nf4Codes:
    """One weight ``[rows, columns]`` in bitsandbytes' form."""

    packed: Tensor
    """uint8 ``[⌈rows * columns / 2⌉]``: two codes a byte, the first in the high half."""
    absmax: Tensor
    """float32 ``[⌈rows * columns / 64⌉]``."""
    shape: tuple[int, int]

    @property
    def label(self) -> str:
        """Return the scheme that these codes really have, as reports name it."""
        return Nf4().label

    def dequantize(self) -> Tensor:
        """Return the float32 ``[rows, columns]`` weight that these codes stand for."""
        count = self.shape[0] * self.shape[1]
        pairs = torch.stack([self.packed >> 4, self.packed & 0xF], dim=-1).view(-1)[:count]
        values = torch.tensor(NF4_LEVELS)[pairs.to(torch.int32)]
        return values.mul_(self.absmax.repeat_interleave(NF4_BLOCK)[:count]).view(self.shape)

    def select_rows(self, rows: Tensor) -> "Nf4Codes":
        """Return the codes with their rows reordered by the index ``rows``.

        Raises:
            ArtifactError: blocks reach across rows.
        """
        require_whole_rows(self.shape)
        return Nf4Codes(
            packed=self.packed.view(self.shape[0], -1)[rows].view(-1),
            absmax=self.absmax.view(self.shape[0], -1)[rows].view(-1),
            shape=(rows.numel(), self.shape[1]),
        )


def require_whole_rows(shape: tuple[int, int]) -> None:
    """Check that every block lies within one row, as kernels and reordering need it.

    Raises:
        ArtifactError: it does not.
    """
    if shape[1] % NF4_BLOCK:
        raise ArtifactError(
            f"nf4 blocks of {NF4_BLOCK} values reach across the rows of a weight with {shape[1]} "
            "columns, which this engine cannot run: use the recipe int8 or int4"
        )


def stack_nf4(parts: list[Nf4Codes]) -> Nf4Codes:
    """Stack weights of equal width by rows.

    Raises:
        ArtifactError: blocks reach across rows.
    """
    for part in parts:
        require_whole_rows(part.shape)
    return Nf4Codes(
        packed=torch.cat([part.packed for part in parts]),
        absmax=torch.cat([part.absmax for part in parts]),
        shape=(sum(part.shape[0] for part in parts), parts[0].shape[1]),
    )


def quantize_nf4(weight: Tensor) -> Nf4Codes:
    """Quantize one weight ``[rows, columns]`` of any float dtype with bitsandbytes.

    The bytes are those of ``BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")`` in
    transformers, without double quantization.

    Raises:
        BuildError: bitsandbytes is not installed.
    """
    try:
        # It imports torch's compiler: seconds and 120 MB, which only builds of nf4 should pay.
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise BuildError(
            f"nf4 needs bitsandbytes ({error}): install narrowgate[embedded]"
        ) from None
    packed, absmax = [], []
    values = weight.reshape(-1)
    for start in range(0, values.numel(), _CHUNK):
        chunk = values[start : start + _CHUNK]
        codes, state = quantize_4bit(
            chunk, blocksize=NF4_BLOCK, compress_statistics=False, quant_type="nf4"
        )
        packed.append(codes.view(-1))
        absmax.append(state.absmax)
    return Nf4Codes(torch.cat(packed), torch.cat(absmax), (weight.shape[0], weight.shape[1]))
