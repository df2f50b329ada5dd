"""Which recipe vLLM can carry out on which device, and by which of its options: one table.

What it cannot do is refused with the reason and the nearest recipe that it can.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compression.kv.layers import layer_schemes
from compression.recipe import KvCache, Recipe
from compression.schemes import (
    AnyKv,
    AnyWeight,
    Int4,
    Int5,
    Int8,
    KvFp8,
    KvInt4,
    KvInt8,
    KvUnquantized,
    Nf4,
    Unquantized,
)
from gateway.backends.vllm_experts import require_experts_servable
from gateway.backends.vllm_facts import VllmFacts
from gateway.errors import LoadRefused

MAX_INT8_ERROR = 0.01
"""Above it vLLM's int8 product is wrong; rounding to bf16 alone makes 0.002."""

KEPT_LAYERS = "--kv-cache-dtype-skip-layers"
KERNELS = "NARROWGATE_VLLM_KERNELS"
DISABLED = "VLLM_DISABLED_KERNELS"
_FAILING: Mapping[str, str] = MappingProxyType(
    {"int8": "CPUInt8ScaledMMLinearKernel", "int4": "CPUWNA16LinearKernel"}
)
"""vLLM's kernel of a scheme, which ours stands in for where it fails."""

_SCHEMES: Mapping[type[AnyWeight], str] = MappingProxyType({Int8: "int8", Int4: "int4"})
"""What the kernels for a scheme of weights are called by."""

_FP8_WEIGHTS = frozenset({"fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block"})
_CUDA_FP8 = (8, 9)
_CUDA_PACKED = (7, 5)


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """How vLLM is to be started for a recipe."""

    options: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What differs from what the operator may expect, a sentence each."""
    kept: KvCache | None = None
    """The recipe's cache, where it keeps layers at either end in 16 bits.

    Which ones these are is known with the checkpoint.
    """

    def options_for(self, directory: Path) -> dict[str, str | tuple[str, ...]]:
        """Return the options for the checkpoint in ``directory``.

        Raises:
            LoadRefused: layers at its end are to be kept, and it does not say how many it has.
            RecipeError: every layer is to be kept.
        """
        if self.kept is None:
            return dict(self.options)
        found = json.loads((directory / "config.json").read_bytes()).get("num_hidden_layers")
        if not isinstance(found, int):
            raise LoadRefused(
                "'keep_first' and 'keep_last' of 'kv_cache' count layers, and the checkpoint's "
                "config.json has no 'num_hidden_layers': leave them out"
            )
        layers = enumerate(layer_schemes(self.kept, found))
        plain = tuple(f"{index}" for index, layer in layers if not layer.is_quantized)
        return {**self.options, KEPT_LAYERS: plain}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a part of a recipe cannot be served, and what can be instead."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class OwnKernel:
    """A kernel of ours stands in for one of vLLM's that fails here or rounds what it should not."""

    scheme: str
    reason: str


Verdict = Refusal | OwnKernel | None


def _int8(facts: VllmFacts) -> Verdict:
    if facts.device == "cpu":
        error = facts.int8_error
        if error is None:
            return OwnKernel("int8", "vLLM's int8 product could not be checked on this processor")
        if error <= MAX_INT8_ERROR:
            return None
        why = "" if "vnni" in facts.cpu_features else ", which has no VNNI"
        return OwnKernel(
            "int8",
            f"vLLM's int8 product is off by {error:.0%} on this processor{why}: activations stay "
            "in 16 bits instead",
        )
    return _needs_cuda(facts, _CUDA_PACKED, "int8")


def _int4(facts: VllmFacts) -> Verdict:
    if facts.device == "cpu":
        if facts.has_int4_kernel:
            return None
        return OwnKernel("int4", "this vLLM was built without its int4 kernel for this processor")
    return _needs_cuda(facts, _CUDA_PACKED, "int4")


def _int5(facts: VllmFacts) -> Verdict:
    where = "on a processor" if facts.device == "cpu" else "that was tried here on a GPU"
    return Refusal(
        f"vLLM has no kernel for weights of 5 bits {where}",
        "use recipe int4-gptq or int8, or engine 'embedded'",
    )


def _nf4(facts: VllmFacts) -> Verdict:
    if facts.has_bitsandbytes_plugin:
        return None
    return Refusal(
        "vLLM reads nf4 only with its plugin vllm-bnb-plugin, which is not installed beside it",
        "install the plugin, or use recipe int4",
    )


def _needs_cuda(facts: VllmFacts, least: tuple[int, int], scheme: str) -> Verdict:
    if facts.capability is None or facts.capability >= least:
        return None
    found, needed = ".".join(map(str, facts.capability)), ".".join(map(str, least))
    return Refusal(
        f"{scheme} needs a GPU of compute capability {needed}, this one has {found}",
        "use recipe full",
    )


WEIGHTS: Mapping[type[AnyWeight], Callable[[VllmFacts], Verdict]] = MappingProxyType(
    {Unquantized: lambda facts: None, Int8: _int8, Int5: _int5, Int4: _int4, Nf4: _nf4}
)
"""Every scheme of weights; a test holds the table complete."""

CUDA_KV: Mapping[type[AnyKv], str] = MappingProxyType(
    {
        KvUnquantized: "auto",
        KvInt8: "int8_per_token_head",
        KvInt4: "int4_per_token_head",
        KvFp8: "fp8_per_token_head",
    }
)
"""vLLM's name for the scheme of keys and values that is nearest to each of ours."""

_KV_NOTE = "vLLM rounds keys and values by rules of its own (one range a token and head at most)"


def own_kernels(facts: VllmFacts) -> list[OwnKernel]:
    """Return the kernels of ours that this vLLM needs here, whatever the recipe."""
    verdicts = [check(facts) for check in WEIGHTS.values()]
    return [each for each in verdicts if isinstance(each, OwnKernel)]


def plan(recipe: Recipe | None, facts: VllmFacts) -> VllmPlan:
    """Return how to start vLLM for a recipe; None: the full model.

    Raises:
        LoadRefused: it cannot carry the recipe out; names the part, the reason and the remedy.
    """
    # A checkpoint that somebody else has quantized meets the same kernels.
    own = {each.scheme: each for each in own_kernels(facts)}
    if recipe is not None and _rounds_inputs_unasked(recipe, facts):
        own.setdefault("int8", _UNROUNDED)
    environment = {}
    if own:
        environment = {
            KERNELS: ",".join(sorted(own)),
            DISABLED: ",".join(_FAILING[scheme] for scheme in sorted(own)),
        }
    if recipe is None:
        return VllmPlan(environment=environment)
    verdicts = [WEIGHTS[type(scheme)](facts) for scheme in dict.fromkeys(recipe.schemes)]
    for verdict in verdicts:
        if isinstance(verdict, Refusal):
            raise _refused(recipe, verdict)
    schemes = {_SCHEMES.get(type(scheme)) for scheme in recipe.schemes}
    notes = [own[scheme].reason for scheme in sorted(own) if scheme in schemes]
    if recipe.kv_cache.is_quantized:
        notes.append(_KV_NOTE)
    if not isinstance(recipe.embeddings, Unquantized):
        notes.append("vLLM keeps embeddings and the output head as the files have them, in 16 bits")
    kept = _kept(recipe, facts)
    return VllmPlan(_kv_options(recipe, facts), environment, tuple(notes), kept)


_UNROUNDED = OwnKernel(
    "int8",
    "vLLM's int8 product on a processor rounds the layers' inputs to 8 bits, which the recipe does "
    "not ask for: they stay in 16 bits instead, but for those of a mixture's experts; recipe w8a8 "
    "asks for it",
)


def _rounds_inputs_unasked(recipe: Recipe, facts: VllmFacts) -> bool:
    """Return whether vLLM's own kernel would serve int8 layers as another recipe."""
    has_int8 = any(isinstance(scheme, Int8) for scheme in recipe.schemes)
    return facts.device == "cpu" and has_int8 and recipe.activations == "none"


def require_fp8_weights(asked: object, facts: VllmFacts) -> None:
    """Check that vLLM can round weights to fp8 as its option ``quantization`` asks.

    Raises:
        LoadRefused: on this processor it cannot; says what works.
    """
    can = facts.fp8_weights
    if can is None or asked in can or asked not in _FP8_WEIGHTS:
        return
    works = "fp8_per_block with recipe full, or " if "fp8_per_block" in can else ""
    raise LoadRefused(
        f"'vllm_options' has 'quantization' as {asked!r}: vLLM {facts.version} lacks what it calls "
        f"on this processor: use {works}recipe int8"
    )


def require_servable_by(facts: VllmFacts, config: Mapping[str, Any], name: str) -> None:
    """Check that vLLM knows a checkpoint's family and shapes, and runs its experts' codes.

    ``config`` is its config.json, ``name`` what the operator calls it.

    Raises:
        LoadRefused: names what does not fit.
    """
    families = [str(each) for each in config.get("architectures") or ()]
    if families and not facts.architectures.intersection(families):
        raise LoadRefused(
            f"model {name!r} is a {families[0]}, which vLLM {facts.version} does not know: "
            "use engine 'embedded' or a newer vLLM"
        )
    head_dim = _head_dim(config)
    if facts.head_sizes and head_dim is not None and head_dim not in facts.head_sizes:
        sizes = ", ".join(map(str, sorted(facts.head_sizes)))
        raise LoadRefused(
            f"model {name!r} has heads of {head_dim} values; vLLM's attention on a processor "
            f"takes {sizes}: use engine 'embedded'"
        )
    require_experts_servable(facts, config, name)


def _kv_options(recipe: Recipe, facts: VllmFacts) -> dict[str, str | tuple[str, ...]]:
    cache = recipe.kv_cache
    if not cache.is_quantized:
        return {}
    if facts.device == "cpu":
        dtype = _cpu_kv(recipe, facts)
    elif cache.key != cache.value:
        raise _refused(
            recipe,
            Refusal(
                f"vLLM keeps keys and values alike, and these are {cache.key.label} and "
                f"{cache.value.label}",
                "give both the same scheme in 'kv_cache', or use engine 'embedded'",
            ),
        )
    else:
        dtype = CUDA_KV[type(cache.key)]
        is_old = facts.capability is not None and facts.capability < _CUDA_FP8
        if isinstance(cache.key, KvFp8) and is_old:
            raise _refused(
                recipe,
                Refusal("fp8 needs a GPU of compute capability 8.9", "use kv_cache int8 or none"),
            )
    choices = facts.options.get("--kv-cache-dtype")
    if choices is not None and dtype not in choices:
        raise _refused(
            recipe,
            Refusal(f"vLLM {facts.version} has no {dtype} cache", "use a newer vLLM, or fp8"),
        )
    return {"--kv-cache-dtype": dtype}


def _kept(recipe: Recipe, facts: VllmFacts) -> KvCache | None:
    """Return the cache of a recipe that keeps outer layers in 16 bits."""
    cache = recipe.kv_cache
    if not cache.is_quantized or not (cache.keep_first or cache.keep_last):
        return None
    if KEPT_LAYERS not in facts.options:
        why = f"vLLM {facts.version} lacks the option that 'keep_first' and 'keep_last' need"
        remedy = "use 0.32 or newer, leave them out of 'kv_cache', or use engine 'embedded'"
        raise _refused(recipe, Refusal(f"{why} ({KEPT_LAYERS})", remedy))
    if facts.device != "cpu":
        raise _refused(
            recipe,
            Refusal(
                "'keep_first' and 'keep_last' of 'kv_cache' put layers of two widths into one "
                "cache, with a range a token and head in some of them, which has not been tried "
                "on a GPU",
                "leave them out, or use engine 'embedded'",
            ),
        )
    return cache


def _cpu_kv(recipe: Recipe, facts: VllmFacts) -> str:
    cache = recipe.kv_cache
    if not isinstance(cache.key, KvFp8) or not isinstance(cache.value, KvFp8):
        raise _refused(
            recipe,
            Refusal(
                f"on a processor vLLM keeps keys and values in 16 bits or fp8, not in "
                f"{cache.key.label} and {cache.value.label}",
                "use kv_cache fp8 or none, or engine 'embedded'",
            ),
        )
    if not facts.cpu_features & {"amx", "avx512"}:
        raise _refused(
            recipe,
            Refusal(
                "vLLM's fp8 cache needs a processor with AVX-512 or AMX, and this one has neither",
                "use kv_cache none, or engine 'embedded'",
            ),
        )
    return "fp8"


def _head_dim(config: Mapping[str, Any]) -> int | None:
    if config.get("head_dim"):
        return int(config["head_dim"])
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(hidden) // int(heads) if hidden and heads else None


def _refused(recipe: Recipe, refusal: Refusal) -> LoadRefused:
    return LoadRefused(
        f"recipe {recipe.name!r} cannot be served by vLLM: {refusal.reason}: {refusal.remedy}"
    )
