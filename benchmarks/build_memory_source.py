"""The checkpoint that :mod:`benchmarks.build_memory` builds: random weights in several shards."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.build_memory import CONFIG, SHARDS
from compression.architecture import parse_architecture
from compression.plan import StoredTensor
from compression.tensor_file import TensorFileWriter

_PIECE_ROWS = 4096


def write(directory: Path) -> None:
    """Write config, index and shards of about equal size into a new directory."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    shapes = parse_architecture(CONFIG, where="synthetic").tensors()
    declared = [StoredTensor(name, "BF16", shape) for name, shape in shapes.items()]
    limit = sum(tensor.num_bytes for tensor in declared) / SHARDS
    shards: list[list[StoredTensor]] = [[] for _ in range(SHARDS)]
    done = 0
    for tensor in declared:
        shards[min(int(done / limit), SHARDS - 1)].append(tensor)
        done += tensor.num_bytes
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        with TensorFileWriter(directory / file, tensors) as writer:
            for tensor in tensors:
                writer.write_pieces(tensor.name, random_rows(tensor.shape, generator))
                weight_map[tensor.name] = file
            writer.finish()
    index = {"metadata": {"total_size": done}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def random_rows(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    """Yield normal values of the spread that trained weights have, a run of rows at a time."""
    rows, *rest = shape
    for start in range(0, rows, _PIECE_ROWS):
        count = min(_PIECE_ROWS, rows - start)
        values = torch.randn(count, *rest, generator=generator)
        yield values.mul_(0.02).to(torch.bfloat16)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
