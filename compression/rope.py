"""What config.json says about the rotary position embedding: free of torch.

The kinds and their keys are those of ``transformers.modeling_rope_utils``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from compression.config_values import read_flag, read_number, read_size, refusal
from compression.errors import UnsupportedArchitecture


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary position embedding: its base and how a longer context is reached."""

    kind: str
    """``default``, ``linear``, ``dynamic``, ``llama3``, ``yarn`` or ``longrope``."""
    theta: float
    factor: float = 1.0
    original_length: int = 1
    """Positions that the model was trained on before it was stretched."""
    attention_factor: float = 1.0
    """By which turned queries and keys are multiplied."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    """Whether yarn rounds the ends of its ramp to whole channels."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def context(self, max_position_embeddings: int) -> int:
        """Return how many positions the model can be used for.

        Dynamic scaling begins where ``max_position_embeddings`` ends, and a checkpoint to which
        yarn is added by hand keeps its old ``max_position_embeddings``.
        """
        match self.kind:
            case "dynamic":
                return math.floor(self.factor * max_position_embeddings)
            case "yarn":
                stretched = math.floor(self.factor * self.original_length)
                return max(max_position_embeddings, stretched)
            case _:
                return max_position_embeddings


_NUMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "yarn": (),
        "longrope": (),
    }
)
"""What each kind needs besides ``rope_theta``; yarn and longrope have defaults for all."""


def parse_rope(config: Mapping[str, Any], *, head_dim: int, context: int, where: str) -> Rope:
    """Return the rotation that ``config`` describes; ``context`` is its longest position.

    Raises:
        UnsupportedArchitecture: a kind or a feature that this project does not know.
        CorruptCheckpoint: a value is missing or makes no sense.
    """
    given = _entry(config, where)
    kind = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(kind, str):
        raise refusal("rope_type", kind, where, "the name of a kind")
    names = _NUMBERS.get(kind)
    if names is None:
        known = ", ".join(_NUMBERS)
        raise UnsupportedArchitecture(
            f"{where}: rope_type {kind!r} is not supported: only {known} are"
        )
    _refuse_features(config, given, where)
    theta = read_number(
        "rope_theta", given.get("rope_theta", config.get("rope_theta", 10000.0)), where
    )
    numbers = {name: read_number(name, given.get(name), where) for name in names}
    holder = config if config.get("original_max_position_embeddings") is not None else given
    original = read_size(holder, "original_max_position_embeddings", where, default=context)
    match kind:
        case "dynamic":
            return Rope(kind, theta, numbers["factor"], original_length=context)
        case "yarn":
            return _yarn(given, theta, original, context, where)
        case "longrope":
            return _longrope(given, theta, original, context, head_dim // 2, where)
        case _:
            return Rope(
                kind,
                theta,
                factor=numbers.get("factor", 1.0),
                original_length=original,
                low_freq_factor=numbers.get("low_freq_factor", 1.0),
                high_freq_factor=numbers.get("high_freq_factor", 1.0),
            )


def _entry(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return ``rope_parameters``, else ``rope_scaling`` (its older name), else nothing."""
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise refusal(key, value, where, "an object or null")
        if value:
            return value
    return {}


def _refuse_features(config: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    nested = [key for key, value in given.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedArchitecture(
            f"{where}: rope_parameters that differ by layer ({', '.join(nested)}) are not supported"
        )
    for values in (config, given):
        part = values.get("partial_rotary_factor")
        if part is not None and part != 1:
            raise UnsupportedArchitecture(
                f"{where}: partial_rotary_factor {part!r} is not supported: only 1 is"
            )


def _stretch(given: Mapping[str, Any], original: int, context: int, where: str) -> float:
    factor = given.get("factor")
    return context / original if factor is None else read_number("factor", factor, where)


def _yarn(given: Mapping[str, Any], theta: float, original: int, context: int, where: str) -> Rope:
    """YaRN, Peng et al. 2023 (arXiv 2309.00071)."""

    def optional(name: str) -> float | None:
        return read_number(name, given[name], where) if given.get(name) else None

    factor = _stretch(given, original, context, where)
    attention = optional("attention_factor")
    mscale, mscale_all = optional("mscale"), optional("mscale_all_dim")
    if attention is None and mscale is not None and mscale_all is not None:
        attention = _magnitude(factor, mscale) / _magnitude(factor, mscale_all)
    return Rope(
        "yarn",
        theta,
        factor=factor,
        original_length=original,
        attention_factor=_magnitude(factor, 1.0) if attention is None else attention,
        beta_fast=optional("beta_fast") or 32.0,
        beta_slow=optional("beta_slow") or 1.0,
        is_truncated=read_flag(given, "truncate", where, default=True),
    )


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(
    given: Mapping[str, Any], theta: float, original: int, context: int, size: int, where: str
) -> Rope:
    """LongRoPE, Ding et al. 2024 (arXiv 2402.13753)."""
    factor = _stretch(given, original, context, where)
    attention = given.get("attention_factor")
    if attention is None:
        grown = factor > 1 and original > 1
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if grown else 1.0
    return Rope(
        "longrope",
        theta,
        factor=factor,
        original_length=original,
        attention_factor=read_number("attention_factor", attention, where),
        short_factors=_factors(given, "short_factor", size, where),
        long_factors=_factors(given, "long_factor", size, where),
    )


def _factors(given: Mapping[str, Any], key: str, size: int, where: str) -> tuple[float, ...]:
    values = given.get(key)
    if not isinstance(values, list) or len(values) != size:
        raise refusal(key, values, where, f"a list of {size} numbers")
    return tuple(read_number(key, value, where) for value in values)
