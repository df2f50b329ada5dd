"""GPTQModel's GPTQ (Frantar et al. 2022, arXiv 2210.17323), 4 bit, asymmetric groups of 32.

Two orders of the columns: GPTQModel's default (group-aware: groups are visited by importance, the
stored order stays), and ``desc_act`` (columns sorted by importance, which costs an index for each
input and the speed of most kernels).
"""

import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.exchange import (
    Sizes,
    embedding_bytes,
    is_written,
    linears,
    read_calibration,
    tensor_bytes,
    write,
)
from benchmarks.peers.gptq_layout import dequantize

GROUP = 32
ORDERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "group-aware": {"act_group_aware": True, "desc_act": False},
        "desc_act": {"act_group_aware": False, "desc_act": True},
    }
)
_PARTS = ("qweight", "qzeros", "scales")


def main(checkpoint: Path, work: Path) -> None:
    """Write the weights of each order."""
    windows = read_calibration(work)
    for order in ORDERS:
        directory = work / f"gptq-g{GROUP}-{order}"
        if not is_written(directory):
            with tempfile.TemporaryDirectory(dir=work) as scratch:
                quantize(checkpoint, windows, ORDERS[order], Path(scratch))
                hand_over(checkpoint, Path(scratch), directory, order)


def quantize(
    checkpoint: Path, windows: list[list[int]], order: Mapping[str, Any], out: Path
) -> None:
    """Let GPTQModel write its own checkpoint, with zero points as they are (format v2)."""
    torch.manual_seed(0)
    config = QuantizeConfig(
        bits=4, group_size=GROUP, sym=False, format=FORMAT.GPTQ_V2, offload_to_disk=False, **order
    )
    model = GPTQModel.load(str(checkpoint), config, device="cpu", dtype=torch.float32)
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows])
    model.save(str(out))


def hand_over(checkpoint: Path, quantized: Path, directory: Path, order: str) -> None:
    """Write GPTQModel's checkpoint, dequantized."""
    stored: dict[str, Tensor] = {}
    for file in sorted(quantized.glob("*.safetensors")):
        stored |= load_file(file)
    weights, num_bytes = {}, 0
    for name, weight in linears(checkpoint):
        stem = name.removesuffix(".weight")
        qweight, qzeros, scales = (stored[f"{stem}.{part}"] for part in _PARTS)
        index = stored.get(f"{stem}.g_idx", torch.arange(weight.shape[1]) // GROUP)
        # In order, the index says nothing: kernels do not need it.
        is_needed = not torch.equal(index.long(), torch.arange(weight.shape[1]) // GROUP)
        num_bytes += tensor_bytes(qweight, qzeros, scales, *([index] if is_needed else []))
        weights[name] = dequantize(qweight, qzeros, scales, index)
    sizes = Sizes(
        name=f"GPTQModel g{GROUP} {order}",
        version=f"gptqmodel {version('gptqmodel')}",
        settings=f"4 bit, group {GROUP}, asymmetric, {scale_type(stored)} scales",
        linear_bytes=num_bytes,
        embedding_bytes=embedding_bytes(checkpoint),
        embedding="bf16",
    )
    write(directory, weights, sizes)


def scale_type(stored: Mapping[str, Tensor]) -> str:
    """Return the type of the stored scales, such as ``float16``."""
    types = {tensor.dtype for name, tensor in stored.items() if name.endswith(".scales")}
    return ", ".join(sorted(str(each).removeprefix("torch.") for each in types))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
