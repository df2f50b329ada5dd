"""What a checkpoint's config.json says about its shape: the decoder families this project knows."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compression.config_values import read_flag, read_number, read_size, refusal
from compression.errors import CorruptCheckpoint, SourceError, UnsupportedArchitecture
from compression.rope import Rope, parse_rope
from compression.windows import WindowRule, parse_windows


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one decoder family from plain Llama."""

    qkv_bias: bool = False
    """q, k and v always carry a bias."""
    optional_bias: bool = False
    """`attention_bias` (q, k, v, o) and `mlp_bias` (gate, up, down) are honoured."""
    attention_bias: bool = False
    """`attention_bias` alone is honoured."""
    qk_norm: bool = False
    """Queries and keys are RMS-normalized per head before the rotation."""
    head_dim: int | None = None
    """What an absent ``head_dim`` stands for; None for hidden size over heads."""
    windows: WindowRule = "none"
    """Which layers may have a sliding window."""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(optional_bias=True),
        "MistralForCausalLM": Family(windows="all"),
        "Qwen2ForCausalLM": Family(qkv_bias=True, windows="listed"),
        "Qwen3ForCausalLM": Family(
            attention_bias=True, qk_norm=True, head_dim=128, windows="listed"
        ),
    }
)

_MAX_LAYERS = 10_000
"""Far above any real model: a damaged count must not fill the memory with tensor names."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of one decoder-only checkpoint."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: Rope
    windows: tuple[int | None, ...]
    """How many positions each layer's queries see, their own included; None for all."""

    @property
    def context(self) -> int:
        """Return how many positions the model can be used for, its scaling included."""
        return self.rope.context(self.max_position_embeddings)

    def linears(self, layer: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield ``(module path, [rows, columns])`` of one layer's linear modules."""
        queries = self.num_heads * self.head_dim
        keys = self.num_kv_heads * self.head_dim
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj", (queries, self.hidden_size)
        yield f"{prefix}.self_attn.k_proj", (keys, self.hidden_size)
        yield f"{prefix}.self_attn.v_proj", (keys, self.hidden_size)
        yield f"{prefix}.self_attn.o_proj", (self.hidden_size, queries)
        yield f"{prefix}.mlp.gate_proj", (self.intermediate_size, self.hidden_size)
        yield f"{prefix}.mlp.up_proj", (self.intermediate_size, self.hidden_size)
        yield f"{prefix}.mlp.down_proj", (self.hidden_size, self.intermediate_size)

    def has_bias(self, module: str) -> bool:
        """Return whether the linear module of that path carries a bias."""
        if module.endswith(("q_proj", "k_proj", "v_proj")):
            return self.qkv_bias
        return self.output_bias if module.endswith("o_proj") else self.mlp_bias

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor that the checkpoint must hold."""
        hidden = (self.hidden_size,)
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for layer in range(self.num_layers):
            for module, shape in self.linears(layer):
                shapes[f"{module}.weight"] = shape
                if self.has_bias(module):
                    shapes[f"{module}.bias"] = shape[:1]
            prefix = f"model.layers.{layer}"
            shapes[f"{prefix}.input_layernorm.weight"] = hidden
            shapes[f"{prefix}.post_attention_layernorm.weight"] = hidden
            if self.qk_norm:
                shapes[f"{prefix}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"{prefix}.self_attn.k_norm.weight"] = (self.head_dim,)
        shapes["model.norm.weight"] = hidden
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes


def read_config(directory: Path) -> dict[str, Any]:
    """Return the parsed config.json of a checkpoint directory.

    Raises:
        SourceError: there is none.
        CorruptCheckpoint: it is not a JSON object.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            f"{str(directory)!r} has no config.json: give a Hugging Face checkpoint directory"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{str(path)!r} is not JSON ({error}): fetch it again") from None
    if not isinstance(config, dict):
        raise CorruptCheckpoint(f"{str(path)!r} holds no JSON object: fetch the checkpoint again")
    return config


def require_unquantized(config: Mapping[str, Any], *, where: str) -> None:
    """Refuse a checkpoint that somebody quantized before.

    Raises:
        SourceError: config.json has a ``quantization_config``.
    """
    if config.get("quantization_config"):
        raise SourceError(
            f"{where} is already quantized (config.json has quantization_config): "
            "give the full-precision checkpoint"
        )


def parse_architecture(config: Mapping[str, Any], *, where: str) -> Architecture:
    """Return the architecture that ``config`` describes; ``where`` names it in errors.

    Raises:
        UnsupportedArchitecture: a family or a feature this project does not know.
        CorruptCheckpoint: a value is missing or makes no sense.
    """
    name = _name(config, where)
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnsupportedArchitecture(
            f"{where}: architecture {name!r} is not known by heart, as this needs: use a "
            f"checkpoint of {known}"
        )
    context = read_size(config, "max_position_embeddings", where)
    _refuse_features(config, where=where)
    heads = read_size(config, "num_attention_heads", where)
    hidden = read_size(config, "hidden_size", where)
    kv_heads = read_size(config, "num_key_value_heads", where, default=heads)
    if heads % kv_heads:
        raise CorruptCheckpoint(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if heads > hidden:
        raise CorruptCheckpoint(
            f"{where}: num_attention_heads {heads} is more than hidden_size {hidden}"
        )
    head_dim = read_size(config, "head_dim", where, default=family.head_dim or hidden // heads)
    num_layers = read_size(config, "num_hidden_layers", where, limit=_MAX_LAYERS)
    rope = parse_rope(config, head_dim=head_dim, context=context, where=where)
    attention_bias = read_flag(config, "attention_bias", where)
    honoured = family.optional_bias or family.attention_bias
    return Architecture(
        name=name,
        vocab_size=read_size(config, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=read_size(config, "intermediate_size", where),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=read_number("rms_norm_eps", config.get("rms_norm_eps", 1e-6), where),
        tied=read_flag(config, "tie_word_embeddings", where),
        qkv_bias=family.qkv_bias or (honoured and attention_bias),
        output_bias=honoured and attention_bias,
        mlp_bias=read_flag(config, "mlp_bias", where) and family.optional_bias,
        qk_norm=family.qk_norm,
        rope=rope,
        windows=parse_windows(
            config,
            family.windows,
            num_layers=num_layers,
            context=rope.context(context),
            where=where,
        ),
    )


def _name(config: Mapping[str, Any], where: str) -> str:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
        case other:
            raise refusal("architectures", other, where, "a list such as ['LlamaForCausalLM']")


def _refuse_features(config: Mapping[str, Any], *, where: str) -> None:
    require_unquantized(config, where=where)
    activation = config.get("hidden_act", "silu")
    if not isinstance(activation, str):
        raise refusal("hidden_act", activation, where, "the name of an activation")
    if activation not in {"silu", "swish"}:
        raise UnsupportedArchitecture(
            f"{where}: hidden_act {activation!r} is not supported: only 'silu' is"
        )
