"""What a checkpoint's config.json says about its shape: the decoder families this project knows."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compression.errors import CorruptCheckpoint, SourceError, UnsupportedArchitecture


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


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(optional_bias=True),
        "MistralForCausalLM": Family(),
        "Qwen2ForCausalLM": Family(qkv_bias=True),
        "Qwen3ForCausalLM": Family(attention_bias=True, qk_norm=True),
    }
)


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary position embedding: its base and how a longer context is reached."""

    kind: str
    """``default``, ``linear`` or ``llama3``."""
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: float = 1.0


_ROPE_NUMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
)
"""What each kind needs besides ``rope_theta``, in the order of :class:`Rope`'s fields."""

_MAX_LAYERS = 10_000
_MAX_SIZE = 2**31
_MAX_NUMBER = 1e30
"""All far above any real model: a damaged count must not fill the memory with tensor names."""


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
            f"{where}: architecture {name!r} is not supported by the embedded engine: use a "
            f"checkpoint of {known}, or `narrowgate build` it and serve that with vLLM"
        )
    context = _size(config, "max_position_embeddings", where)
    _refuse_features(config, context=context, where=where)
    heads = _size(config, "num_attention_heads", where)
    hidden = _size(config, "hidden_size", where)
    kv_heads = _size(config, "num_key_value_heads", where, default=heads)
    if heads % kv_heads:
        raise CorruptCheckpoint(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if heads > hidden:
        raise CorruptCheckpoint(
            f"{where}: num_attention_heads {heads} is more than hidden_size {hidden}"
        )
    attention_bias = _flag(config, "attention_bias", where)
    honoured = family.optional_bias or family.attention_bias
    return Architecture(
        name=name,
        vocab_size=_size(config, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size", where),
        num_layers=_size(config, "num_hidden_layers", where, limit=_MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_size(config, "head_dim", where, default=hidden // heads),
        max_position_embeddings=context,
        rms_norm_eps=_number("rms_norm_eps", config.get("rms_norm_eps", 1e-6), where),
        tied=_flag(config, "tie_word_embeddings", where),
        qkv_bias=family.qkv_bias or (honoured and attention_bias),
        output_bias=honoured and attention_bias,
        mlp_bias=_flag(config, "mlp_bias", where) and family.optional_bias,
        qk_norm=family.qk_norm,
        rope=_rope(config, where=where),
    )


def _refusal(key: str, value: object, where: str, wanted: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{where}: config.json has {key} = {reprlib.repr(value)}, not {wanted}: "
        "fetch the checkpoint again"
    )


def _name(config: Mapping[str, Any], where: str) -> str:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
        case other:
            raise _refusal("architectures", other, where, "a list such as ['LlamaForCausalLM']")


def _size(
    config: Mapping[str, Any],
    key: str,
    where: str,
    *,
    default: int | None = None,
    limit: int = _MAX_SIZE,
) -> int:
    """Return a whole number in 1..limit; ``default`` stands in for an absent or null one."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is int and 0 < value <= limit:
        return value
    raise _refusal(key, value, where, f"a whole number from 1 to {limit}")


def _number(name: str, value: Any, where: str) -> float:
    if type(value) in {int, float} and 0 < value <= _MAX_NUMBER:  # so not NaN
        return float(value)
    raise _refusal(name, value, where, "a number above 0")


def _flag(config: Mapping[str, Any], key: str, where: str, *, default: bool = False) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _refusal(key, value, where, "true or false")
    return value


def _refuse_features(config: Mapping[str, Any], *, context: int, where: str) -> None:
    require_unquantized(config, where=where)
    activation = config.get("hidden_act", "silu")
    if not isinstance(activation, str):
        raise _refusal("hidden_act", activation, where, "the name of an activation")
    if activation not in {"silu", "swish"}:
        raise UnsupportedArchitecture(
            f"{where}: hidden_act {activation!r} is not supported: only 'silu' is"
        )
    window = config.get("sliding_window") or 0
    if type(window) is not int or window < 0:
        raise _refusal("sliding_window", window, where, "a whole number or null")
    is_used = _flag(config, "use_sliding_window", where, default="use_sliding_window" not in config)
    if is_used and 0 < window < context:
        raise UnsupportedArchitecture(
            f"{where}: sliding_window {window} is not supported: use a model with full attention"
        )


def _rope(config: Mapping[str, Any], *, where: str) -> Rope:
    given = _rope_entry(config, where)
    kind = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(kind, str):
        raise _refusal("rope_type", kind, where, "the name of a kind")
    names = _ROPE_NUMBERS.get(kind)
    if names is None:
        known = ", ".join(_ROPE_NUMBERS)
        raise UnsupportedArchitecture(
            f"{where}: rope_type {kind!r} is not supported: only {known} are"
        )
    theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
    numbers = (_number(name, given.get(name), where) for name in names)
    return Rope(kind, _number("rope_theta", theta, where), *numbers)


def _rope_entry(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return ``rope_parameters``, else ``rope_scaling`` (its older name), else nothing."""
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise _refusal(key, value, where, "an object or null")
        if value:
            return value
    return {}
