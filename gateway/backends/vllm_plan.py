"""How vLLM is to be started for a recipe: options and environment, or a refusal.

What it cannot do is refused with the reason and the nearest recipe that it can.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from compression.recipe import KvCache, Recipe
from compression.schemes import AnyWeight, Int4, Int8, Unquantized
from gateway.backends.vllm_cache import KEPT_LAYERS, cache_options, kept_layers, partly_kept
from gateway.backends.vllm_facts import VllmFacts
from gateway.backends.vllm_weights import own_kernels_for, require_kernels

KERNELS = "NARROWGATE_VLLM_KERNELS"
DISABLED = "VLLM_DISABLED_KERNELS"
_FAILING: Mapping[str, str] = MappingProxyType(
    {"int8": "CPUInt8ScaledMMLinearKernel", "int4": "CPUWNA16LinearKernel"}
)
"""vLLM's kernel of a scheme, which ours stands in for where it fails."""

_SCHEMES: Mapping[type[AnyWeight], str] = MappingProxyType({Int8: "int8", Int4: "int4"})
"""What the kernels for a scheme of weights are called by."""


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
        return {**self.options, KEPT_LAYERS: kept_layers(self.kept, directory)}


_KV_NOTE = "vLLM rounds keys and values by rules of its own (one range a token and head at most)"


def plan(recipe: Recipe | None, facts: VllmFacts) -> VllmPlan:
    """Return how to start vLLM for a recipe; None: the full model.

    Raises:
        LoadRefused: it cannot carry the recipe out; names the part, the reason and the remedy.
    """
    own = own_kernels_for(recipe, facts)
    environment = {}
    if own:
        environment = {
            KERNELS: ",".join(sorted(own)),
            DISABLED: ",".join(_FAILING[scheme] for scheme in sorted(own)),
        }
    if recipe is None:
        return VllmPlan(environment=environment)
    require_kernels(recipe, facts)
    schemes = {_SCHEMES.get(type(scheme)) for scheme in recipe.schemes}
    notes = [own[scheme].reason for scheme in sorted(own) if scheme in schemes]
    if recipe.kv_cache.is_quantized:
        notes.append(_KV_NOTE)
    if not isinstance(recipe.embeddings, Unquantized):
        notes.append("vLLM keeps embeddings and the output head as the files have them, in 16 bits")
    kept = partly_kept(recipe, facts)
    return VllmPlan(cache_options(recipe, facts), environment, tuple(notes), kept)
