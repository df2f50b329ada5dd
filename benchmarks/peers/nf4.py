"""bitsandbytes NF4, block 64, no double quantization: what `load_in_4bit` with `nf4` does."""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from benchmarks.peers.exchange import (
    Sizes,
    embedding_bytes,
    is_written,
    linears,
    tensor_bytes,
    write,
)

BLOCK = 64


def main(checkpoint: Path, work: Path) -> None:
    """Write the weights of the NF4 checkpoint."""
    if is_written(work / "nf4"):
        return
    weights, num_bytes = {}, 0
    for name, weight in linears(checkpoint):
        codes, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        num_bytes += tensor_bytes(codes, state.absmax)
        # The kernel multiplies table and absmax in f32; the output type would round the product.
        state.dtype = torch.float32
        weights[name] = dequantize_4bit(codes, state)
    sizes = Sizes(
        name="bitsandbytes NF4",
        version=f"bitsandbytes {version('bitsandbytes')}",
        settings=f"block {BLOCK}, f32 absmax, no double quantization",
        linear_bytes=num_bytes,
        embedding_bytes=embedding_bytes(checkpoint),
        embedding="bf16",
    )
    write(work / "nf4", weights, sizes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
