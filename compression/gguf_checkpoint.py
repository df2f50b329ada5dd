"""Turns a GGUF file of a Llama model into a bf16 Hugging Face checkpoint directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from compression.errors import CorruptCheckpoint, UnsupportedArchitecture
from compression.events import OnProgress, Progress, ignore
from compression.reorder import Reordering, make_reordering, reorder_tensor

_GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3


def convert(
    gguf_file: Path,
    directory: Path,
    *,
    seed: int | None,
    on_progress: OnProgress = ignore,
) -> None:
    """Write config, tokenizer and bf16 weights of ``gguf_file`` into the existing ``directory``.

    ``seed`` draws a new order of the channels; None keeps the file's order.

    Raises:
        CorruptCheckpoint: the file is no readable GGUF file or lacks a field.
        UnsupportedArchitecture: it holds no Llama model with a byte-level BPE tokenizer.
        OSError: ``directory`` cannot be written.
    """
    source = GgufLlama(gguf_file)
    state: dict[str, torch.Tensor] = {}
    reordering = None if seed is None else source.reordering(seed)
    for name, tensor in source.tensors():
        exact = tensor.to(torch.bfloat16)
        state[name] = reorder_tensor(name, exact, reordering) if reordering else exact
        on_progress(Progress("convert", len(state), source.num_tensors, "tensors", name))
    _save_weights(state, directory / "model.safetensors")
    for file_name, content in source.documents(is_tied="lm_head.weight" not in state).items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (directory / file_name).write_text(text + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(
        source.field("tokenizer.chat_template"), encoding="utf-8"
    )
    source.tokenizer().save(str(directory / "tokenizer.json"))


def _save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(state, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    # It is created for its owner alone, unlike all files beside it.
    path.chmod(path.parent.stat().st_mode & 0o666)


class GgufLlama:
    """A GGUF file seen as a Hugging Face Llama checkpoint.

    Raises:
        CorruptCheckpoint: the file is no readable GGUF file or lacks a field.
        UnsupportedArchitecture: it holds no Llama model with a byte-level BPE tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise CorruptCheckpoint(
                f"{path.name} is not a readable GGUF file ({error}): fetch it again"
            ) from error
        kinds = self.field("general.architecture"), self.field("tokenizer.ggml.model")
        if kinds != ("llama", "gpt2"):
            raise UnsupportedArchitecture(
                f"{path.name} holds architecture {kinds[0]!r} with tokenizer {kinds[1]!r}: "
                "only 'llama' with 'gpt2' can be converted"
            )
        self.num_tensors = len(self._reader.tensors)
        self.num_heads = int(self.field("llama.attention.head_count"))
        self.num_kv_heads = int(self.field("llama.attention.head_count_kv"))
        self.head_dim = int(self.field("llama.rope.dimension_count"))

    def field(self, name: str) -> Any:
        """Return a metadata value.

        Raises:
            CorruptCheckpoint: the file lacks it.
        """
        if (field := self._reader.get_field(name)) is None:
            raise CorruptCheckpoint(f"{self.path.name} lacks the field {name!r}: fetch it again")
        return field.contents()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield Hugging Face name and fp32 weight, dequantized, one tensor at a time."""
        for tensor in self._reader.tensors:
            # A copy, because unquantized tensors are views of the read-only file.
            weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            name = hugging_face_name(tensor.name)
            if name.endswith("q_proj.weight"):
                weight = split_rotary_halves(weight, num_heads=self.num_heads)
            elif name.endswith("k_proj.weight"):
                weight = split_rotary_halves(weight, num_heads=self.num_kv_heads)
            yield name, weight

    def reordering(self, seed: int) -> Reordering:
        """Return a random channel order that fits this model."""
        return make_reordering(
            hidden_size=int(self.field("llama.embedding_length")),
            intermediate_size=int(self.field("llama.feed_forward_length")),
            num_layers=int(self.field("llama.block_count")),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            seed=seed,
        )

    def documents(self, *, is_tied: bool) -> dict[str, dict[str, Any]]:
        """Return the JSON files beside the weights: file name → content."""
        names = self.field("tokenizer.ggml.tokens")
        special_ids = {
            "bos_token_id": int(self.field("tokenizer.ggml.bos_token_id")),
            "eos_token_id": int(self.field("tokenizer.ggml.eos_token_id")),
            "pad_token_id": int(self.field("tokenizer.ggml.padding_token_id")),
        }
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names[special_ids["bos_token_id"]],
            "eos_token": names[special_ids["eos_token_id"]],
            "pad_token": names[special_ids["pad_token_id"]],
            "unk_token": names[int(self.field("tokenizer.ggml.unknown_token_id"))],
            "model_max_length": int(self.field("llama.context_length")),
            "clean_up_tokenization_spaces": False,
        }
        return {
            "config.json": self._config() | special_ids | {"tie_word_embeddings": is_tied},
            "generation_config.json": special_ids,
            "tokenizer_config.json": tokenizer_config,
        }

    def _config(self) -> dict[str, Any]:
        theta = float(self.field("llama.rope.freq_base"))
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": int(self.field("llama.embedding_length")),
            "intermediate_size": int(self.field("llama.feed_forward_length")),
            "num_hidden_layers": int(self.field("llama.block_count")),
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "max_position_embeddings": int(self.field("llama.context_length")),
            # GGUF keeps it as fp32; the configuration it came from has the short decimal.
            "rms_norm_eps": float(f"{self.field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            # Readers before transformers 5 know only the first of these two.
            "rope_theta": theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "vocab_size": len(self.field("tokenizer.ggml.tokens")),
        }

    def tokenizer(self) -> Tokenizer:
        """Return the byte-level BPE tokenizer.

        Raises:
            UnsupportedArchitecture: text would be split in a way that is not known here.
        """
        if (split := self.field("tokenizer.ggml.pre")) != "smollm":
            raise UnsupportedArchitecture(
                f"{self.path.name} splits text as {split!r}: only 'smollm' can be converted"
            )
        names = self.field("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self.field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self.field("tokenizer.ggml.token_type")
        tokenizer.add_special_tokens(
            [
                AddedToken(name, normalized=False, special=True)
                for name, kind in zip(names, kinds, strict=True)
                if kind == _CONTROL_TOKEN
            ]
        )
        return tokenizer


def hugging_face_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor.

    Raises:
        UnsupportedArchitecture: it is no tensor of a Llama model.
    """
    match name.split("."):
        case [part, "weight"] if part in _GLOBAL_NAMES:
            return f"{_GLOBAL_NAMES[part]}.weight"
        case ["blk", layer, part, "weight"] if part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"
        case _:
            raise UnsupportedArchitecture(f"tensor {name!r} is not part of a Llama model")


def split_rotary_halves(weight: torch.Tensor, *, num_heads: int) -> torch.Tensor:
    """Return query or key weight [rows, in] with each head's rotary pairs as two halves.

    GGUF keeps the two rows of a pair side by side; Hugging Face keeps first all first rows, then
    all second ones. Source: the inverse of ``permute`` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()
