"""HQQ (Badri & Shaji 2023, "Half-Quadratic Quantization"), 4 bit, groups along a row."""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from hqq.core.quantize import Quantizer
from torch import Tensor

from benchmarks.peers.exchange import (
    Sizes,
    embedding_bytes,
    is_written,
    linears,
    tensor_bytes,
    write,
)

GROUPS = (64, 32)


def main(checkpoint: Path, work: Path) -> None:
    """Write the weights of each group size."""
    for group in GROUPS:
        if not is_written(work / f"hqq-g{group}"):
            quantize(checkpoint, work / f"hqq-g{group}", group)


def quantize(checkpoint: Path, directory: Path, group: int) -> None:
    """Write the weights with one group size; scales and zero points are f16, as by default."""
    weights, num_bytes = {}, 0
    for name, weight in linears(checkpoint):
        packed, meta = Quantizer.quantize(weight, nbits=4, group_size=group, axis=1, device="cpu")
        scale, zero = meta["scale"].to(torch.float16), meta["zero"].to(torch.float16)
        num_bytes += tensor_bytes(packed, scale, zero)
        codes: Tensor = Quantizer.unpack[meta["packing"]](packed, dtype=torch.float32)
        weights[name] = ((codes - zero.float()) * scale.float()).reshape(weight.shape)
    sizes = Sizes(
        name=f"HQQ g{group}",
        version=f"hqq {version('hqq')}",
        settings=f"4 bit, group {group}, axis 1, f16 scale and zero point",
        linear_bytes=num_bytes,
        embedding_bytes=embedding_bytes(checkpoint),
        embedding="bf16",
    )
    write(directory, weights, sizes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
