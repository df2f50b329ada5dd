"""Which weights vLLM has kernels for, by device, and where one of ours stands in: one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from compression.recipe import Recipe
from compression.schemes import AnyWeight, Int4, Int5, Int8, Nf4, Unquantized
from gateway.backends.vllm_facts import VllmFacts
from gateway.backends.vllm_refusal import Refusal
from gateway.errors import LoadRefused

MAX_INT8_ERROR = 0.01
"""Above it vLLM's int8 product is wrong; rounding to bf16 alone makes 0.002."""

_FP8_WEIGHTS = frozenset({"fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block"})
_CUDA_PACKED = (7, 5)


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


_UNROUNDED = OwnKernel(
    "int8",
    "vLLM's int8 product on a processor rounds the layers' inputs to 8 bits, which the recipe does "
    "not ask for: they stay in 16 bits instead, but for those of a mixture's experts; recipe w8a8 "
    "asks for it",
)


def own_kernels(facts: VllmFacts) -> list[OwnKernel]:
    """Return the kernels of ours that this vLLM needs here, whatever the recipe."""
    verdicts = [check(facts) for check in WEIGHTS.values()]
    return [each for each in verdicts if isinstance(each, OwnKernel)]


def own_kernels_for(recipe: Recipe | None, facts: VllmFacts) -> dict[str, OwnKernel]:
    """Return the kernels of ours that serve a recipe, by scheme; None: the full model."""
    # A checkpoint that somebody else has quantized meets the same kernels.
    own = {each.scheme: each for each in own_kernels(facts)}
    if recipe is not None and _rounds_inputs_unasked(recipe, facts):
        own.setdefault(_UNROUNDED.scheme, _UNROUNDED)
    return own


def _rounds_inputs_unasked(recipe: Recipe, facts: VllmFacts) -> bool:
    """Return whether vLLM's own kernel would serve int8 layers as another recipe."""
    has_int8 = any(isinstance(scheme, Int8) for scheme in recipe.schemes)
    return facts.device == "cpu" and has_int8 and recipe.activations == "none"


def require_kernels(recipe: Recipe, facts: VllmFacts) -> None:
    """Check that vLLM has a kernel, or is given one, for each scheme of a recipe's weights.

    Raises:
        LoadRefused: names the scheme, the reason and the remedy.
    """
    for scheme in dict.fromkeys(recipe.schemes):
        verdict = WEIGHTS[type(scheme)](facts)
        if isinstance(verdict, Refusal):
            raise verdict.of(recipe)


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
