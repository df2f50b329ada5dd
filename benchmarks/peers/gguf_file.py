"""A Llama checkpoint as an f32 GGUF file, as llama.cpp's convert_hf_to_gguf.py would write it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from torch import Tensor

_NORMAL, _CONTROL = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write config, byte-level BPE vocabulary and f32 weights of a one-file Llama checkpoint."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer, config, tokenizer)
    for name, weight in _tensors(checkpoint, config):
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def join_rotary_halves(weight: Tensor, *, num_heads: int) -> Tensor:
    """Return query or key weight [rows, in] with the two rows of each rotary pair side by side.

    Source: ``permute`` in llama.cpp's convert_hf_to_gguf.py. The inverse is
    :func:`compression.gguf_checkpoint.split_rotary_halves`.
    """
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


def _tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {
        "q_proj.weight": config["num_attention_heads"],
        "k_proj.weight": config["num_key_value_heads"],
    }
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            weight = file.get_tensor(name).to(torch.float32)
            for ending, count in heads.items():
                if name.endswith(ending):
                    weight = join_rotary_halves(weight, num_heads=count)
            yield names.get_name(name, try_suffixes=(".weight",)), weight


def _add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(
    writer: gguf.GGUFWriter, config: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = {index: token for token, index in vocabulary.items()} | special
    order = range(config["vocab_size"])
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokens[index] for index in order])
    writer.add_token_types([_CONTROL if index in special else _NORMAL for index in order])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
