"""Safetensors written and read tensor by tensor, against the library's own reader."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compression.errors import CorruptCheckpoint
from compression.facts import read_facts
from compression.plan import StoredTensor
from compression.tensor_file import TensorFileWriter
from compression.tensor_source import TensorSource
from tests.checkpoints import make_tiny_checkpoint

DECLARED = (
    StoredTensor("codes", "I8", (3, 4)),
    StoredTensor("scale", "BF16", (3, 1)),
    StoredTensor("shape", "I64", (2,)),
    StoredTensor("state", "U8", (5,)),
)
VALUES = {
    "codes": torch.arange(12, dtype=torch.int8).reshape(3, 4),
    "scale": torch.tensor([[0.5], [2.0], [-1.0]], dtype=torch.bfloat16),
    "shape": torch.tensor([3, 4]),
    "state": torch.arange(5, dtype=torch.uint8),
}


@pytest.mark.parametrize("order", [list(VALUES), list(reversed(VALUES))])
def test_any_order_gives_the_same_file(tmp_path: Path, order: list[str]) -> None:
    """Tensors land where they were declared; the digest is that of the file."""
    path = tmp_path / "x.safetensors"
    with TensorFileWriter(path, DECLARED) as writer:
        for name in order:
            writer.write(name, VALUES[name])
        digest = writer.finish()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    read = load_file(path)
    assert set(read) == set(VALUES)
    assert all(torch.equal(read[name], VALUES[name]) for name in VALUES)


def test_pieces_make_the_whole(tmp_path: Path) -> None:
    """A tensor given in runs of rows is the tensor."""
    path = tmp_path / "x.safetensors"
    with TensorFileWriter(path, DECLARED[:1]) as writer:
        writer.write_pieces("codes", [VALUES["codes"][:2], VALUES["codes"][2:]])
        writer.finish()
    assert torch.equal(load_file(path)["codes"], VALUES["codes"])


def test_what_was_not_declared_is_refused(tmp_path: Path) -> None:
    """Another shape, a second time, too many rows, too few, or none at all: each is an error."""
    with TensorFileWriter(tmp_path / "y", DECLARED) as writer:
        writer.write("scale", VALUES["scale"])
        with pytest.raises(ValueError, match="scale"):
            writer.write("scale", VALUES["scale"])
        with pytest.raises(ValueError, match="more than that"):
            writer.write_pieces("codes", [VALUES["codes"], VALUES["codes"]])
        with pytest.raises(ValueError, match="only 8 bytes"):
            writer.write_pieces("shape", [VALUES["shape"][:1]])
        with pytest.raises(ValueError, match=r"got .*shape=\(5, 1\)"):
            writer.write("state", VALUES["state"].unsqueeze(1))


def test_unfinished_file_is_no_file(tmp_path: Path) -> None:
    """A tensor that never came is an error at the end."""
    with TensorFileWriter(tmp_path / "x", DECLARED) as writer:
        writer.write("scale", VALUES["scale"])
        with pytest.raises(ValueError, match="codes, never written"):
            writer.finish()


@pytest.mark.parametrize("shards", ["5GB", "50KB"])
def test_source_reads_what_the_library_reads(tmp_path: Path, shards: str) -> None:
    """Whole and in pieces, from one file and from several."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model", max_shard_size=shards))
    with TensorSource(facts) as source:
        for file in facts.files:
            for name, expected in load_file(facts.directory / file).items():
                assert torch.equal(source.read(name), expected)
                pieces = list(source.pieces(name, 1000))
                assert torch.equal(torch.cat(pieces), expected)
                assert len(pieces) > 1 or expected.dim() == 1


def test_source_notices_a_file_that_shrank(tmp_path: Path) -> None:
    """A file cut after its header was read ends in one line, not in garbage."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "model"))
    path = facts.directory / "model.safetensors"
    last = max(facts.tensors.values(), key=lambda fact: fact.offset)
    path.write_bytes(path.read_bytes()[:-10])
    with TensorSource(facts) as source, pytest.raises(CorruptCheckpoint, match="became shorter"):
        source.read(last.name)
