"""What stands on the frontier: sizes and f32 weights of our artifacts and of the peers' results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import exchange
from benchmarks.peers.exchange import EMBEDDING, Sizes
from compression.errors import ArtifactError
from compression.loading import Checkpoint, Weight
from compression.manifest import Manifest, TensorRecord, read_manifest

Weights = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Point:
    """One method's result, before it is scored."""

    directory: Path
    sizes: Sizes
    """Bytes while the weights are served; a peer's are the same in its file."""
    stored_bytes: int
    """Bytes of linears and embedding in the files."""
    is_ours: bool
    read: Callable[[Path], Weights]
    """Reads the f32 weights of ``directory`` by checkpoint name."""


def peer_points(work: Path) -> list[Point]:
    """Return the whole results of peers in a work directory, by name of their directories."""
    return [
        _peer_point(directory)
        for directory in sorted(work.iterdir())
        if directory.is_dir() and exchange.is_written(directory)
    ]


def _peer_point(directory: Path) -> Point:
    sizes = exchange.read_sizes(directory)
    stored = sizes.linear_bytes + sizes.embedding_bytes
    return Point(directory, sizes, stored, is_ours=False, read=exchange.read_weights)


def artifact_point(directory: Path, name: str) -> Point:
    """Return an artifact under ``name``.

    Raises:
        ArtifactError: the directory holds no whole artifact, or one of a pruned model.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ArtifactError(f"{str(directory)!r} is no artifact: build one with `narrowgate build`")
    if manifest.prune is not None:
        raise ArtifactError(f"{str(directory)!r} is pruned: only whole models can be compared here")
    linears, embedding = _linears(manifest), _embedding(manifest)
    sizes = Sizes(
        name=name,
        version=f"narrowgate {version('narrowgate')}",
        settings=_settings(linears),
        linear_bytes=sum(record.bytes_in_memory for record in linears),
        embedding_bytes=embedding.bytes_in_memory,
        embedding=manifest.recipe.embeddings.label,
    )
    stored = sum(record.bytes_stored for record in (*linears, embedding))
    return Point(directory, sizes, stored, is_ours=True, read=served_weights)


def served_weights(directory: Path) -> Weights:
    """Yield the f32 weights that an artifact's codes stand for, the served embedding included."""
    with Checkpoint(directory) as checkpoint:
        if checkpoint.manifest is None:
            raise ArtifactError(f"{str(directory)!r} has no manifest")
        for record in _linears(checkpoint.manifest):
            yield record.name, _dense(checkpoint.weight(record.name))
        yield EMBEDDING, _dense(checkpoint.embedding(EMBEDDING))


def _dense(weight: Weight) -> Tensor:
    return weight.to(torch.float32) if isinstance(weight, Tensor) else weight.dequantize()


def _linears(manifest: Manifest) -> list[TensorRecord]:
    return [each for each in manifest.tensors if ".layers." in each.name and len(each.shape) == 2]


def _embedding(manifest: Manifest) -> TensorRecord:
    return next(record for record in manifest.tensors if record.name == EMBEDDING)


def _settings(linears: list[TensorRecord]) -> str:
    """Return how many linears have which scheme and method."""
    kinds = [" ".join(filter(None, (each.applied, each.method))) for each in linears]
    return "linears: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
