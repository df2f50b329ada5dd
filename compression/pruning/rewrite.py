"""The pruned checkpoint's files, written layer by layer from the source's tensors."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from compression.artifact import companions, write_index, write_json
from compression.facts import CheckpointFacts
from compression.plan import StoredTensor
from compression.pruning.cut import LayerCut, Projection
from compression.pruning.forecast import pruned_facts
from compression.pruning.selection import channels
from compression.pruning.shape import Shape
from compression.tensor_file import TensorFileWriter
from compression.tensor_source import DTYPES, TensorSource

_PIECE_BYTES = 32 * 1024 * 1024


class Rewriter:
    """Writes a pruned checkpoint into an empty directory; a context manager."""

    def __init__(self, facts: CheckpointFacts, shape: Shape, directory: Path) -> None:
        self._facts = facts
        self._source = TensorSource(facts)
        self._directory = directory
        self._target = pruned_facts(facts, shape)
        self._writers: dict[str, TensorFileWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._source)
            for file in self._facts.files:
                writer = TensorFileWriter(self._directory / file, _declared(self._target, file))
                self._writers[file] = stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def write_layer(self, index: int, cut: LayerCut) -> None:
        """Write all tensors of one layer, without what the cut removes."""
        prefix = f"model.layers.{index}."
        rows = _kept_rows(cut, self._facts.architecture.head_dim)
        projections = {"self_attn.o_proj": cut.output, "mlp.down_proj": cut.down}
        for name in [name for name in self._target.tensors if name.startswith(prefix)]:
            module, _, part = name.removeprefix(prefix).rpartition(".")
            projection = projections.get(module)
            if projection is not None:
                tensor = self._projected(name, part, projection)
            else:
                tensor = self._stored(name, rows.get(module))
            self._write(name, tensor)

    def finish(self) -> int:
        """Write what lies outside the layers, config and companions; return the weights' bytes."""
        for name in [name for name in self._target.tensors if not name.startswith("model.layers.")]:
            writer = self._writers[self._target.tensors[name].file]
            writer.write_pieces(name, self._source.pieces(name, _PIECE_BYTES))
        for writer in self._writers.values():
            writer.finish()
        write_json(self._directory / "config.json", self._target.config)
        for path in companions(self._facts.directory):
            shutil.copyfile(path, self._directory / path.name)
        if self._facts.files != ("model.safetensors",):
            weight_map = {name: fact.file for name, fact in self._target.tensors.items()}
            write_index(self._directory, weight_map, total_bytes=self._target.num_bytes)
        return self._target.num_bytes

    def _projected(self, name: str, part: str, projection: Projection) -> Tensor:
        if part == "weight":
            return projection.weight
        return self._zeros(name) if projection.bias is None else projection.bias

    def _stored(self, name: str, rows: Tensor | None) -> Tensor:
        if name not in self._facts.tensors:  # a bias that the new family asks for
            return self._zeros(name)
        tensor = self._source.read(name)
        return tensor if rows is None else tensor[rows]

    def _zeros(self, name: str) -> Tensor:
        fact = self._target.tensors[name]
        return torch.zeros(fact.shape, dtype=DTYPES[fact.dtype])

    def _write(self, name: str, tensor: Tensor) -> None:
        self._writers[self._target.tensors[name].file].write(name, tensor)


def _declared(facts: CheckpointFacts, file: str) -> list[StoredTensor]:
    return [
        StoredTensor(fact.name, fact.dtype, fact.shape)
        for fact in facts.tensors.values()
        if fact.file == file
    ]


def _kept_rows(cut: LayerCut, head_dim: int) -> dict[str, Tensor]:
    """Return the output rows that stay, by module of the layer."""
    rows: dict[str, Tensor] = {}
    if cut.heads is not None:
        rows["self_attn.q_proj"] = channels(cut.heads.query_heads, head_dim)
        key_rows = channels(cut.heads.kv_heads, head_dim)
        rows |= {"self_attn.k_proj": key_rows, "self_attn.v_proj": key_rows}
    if cut.down is not None:
        rows |= {"mlp.gate_proj": cut.down.kept, "mlp.up_proj": cut.down.kept}
    return rows
