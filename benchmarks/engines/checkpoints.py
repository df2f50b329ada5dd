"""The two models that all engines run: SmolLM2-135M, and random weights in Llama-1B's shapes."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.build_memory import CONFIG
from benchmarks.build_memory_source import random_rows
from benchmarks.peers.environments import WORK
from compression.architecture import parse_architecture
from compression.demo_model import ensure_demo_model
from compression.plan import StoredTensor
from compression.prepare import prepare
from compression.tensor_file import TensorFileWriter

HOME = WORK / "engines"
"""Where the checkpoint, and what peers make of both, are kept."""
SMOLLM2, LLAMA_1B = "smollm2", "llama-1b"
MODELS = (SMOLLM2, LLAMA_1B)
_CONTEXT = 8192
_ROPE = MappingProxyType({"rope_type": "default", "rope_theta": 500000.0})
_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        **CONFIG,
        "max_position_embeddings": _CONTEXT,  # some peers allocate all of it
        "hidden_act": "silu",
        "rope_theta": _ROPE["rope_theta"],
        "rope_parameters": dict(_ROPE),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
)
_ENDS = ("<|begin|>", "<|end|>")


def ensure_checkpoint(model: str) -> Path:
    """Return the directory of a model's full checkpoint, made the first time."""
    if model == SMOLLM2:
        return ensure_demo_model()
    return made_once(HOME / model, _write_llama)


def ensure_artifact(model: str, recipe: str) -> Path:
    """Return the directory that our engine serves, built the first time."""
    directory = ensure_checkpoint(model)
    return prepare(str(directory), recipe, None, lambda _: None).directory


def made_once(target: Path, write: Callable[[Path], None]) -> Path:
    """Return a directory that ``write`` fills, unless it did before; a broken one never stays."""
    if not target.is_dir():
        part = target.with_name(f".{target.name}-{os.getpid()}")
        part.mkdir(parents=True)
        try:
            write(part)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _write_llama(directory: Path) -> None:
    config = dict(_CONFIG)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(directory, int(config["vocab_size"]))
    shapes = parse_architecture(config, where=LLAMA_1B).tensors()
    tensors = [StoredTensor(name, "BF16", shape) for name, shape in shapes.items()]
    generator = torch.Generator().manual_seed(0)
    with TensorFileWriter(directory / "model.safetensors", tensors) as writer:
        for tensor in tensors:
            writer.write_pieces(tensor.name, random_rows(tensor.shape, generator))
        writer.finish()


def _write_tokenizer(directory: Path, size: int) -> None:
    """Write a byte-level vocabulary whose tokens beyond the bytes are plain words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # llama.cpp does not read a vocabulary without a merge.
    words = [*_ENDS, *letters, "th"]
    words += [f"w{index}" for index in range(len(words), size)]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_ENDS))
    backend.save(str(directory / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _ENDS[0],
        "eos_token": _ENDS[1],
        "pad_token": _ENDS[1],
        "model_max_length": _CONTEXT,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
