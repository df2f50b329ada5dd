"""What must hold between a checkpoint and a recipe before a weight is read."""

from compression.errors import RecipeError
from compression.facts import CheckpointFacts
from compression.kv.layers import layer_schemes
from compression.recipe import Recipe, matches
from compression.schemes import CALIBRATED, AnyWeight, Int8, Unquantized

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules of one layer that engines run as one, by the ends of their paths."""


def require_possible(facts: CheckpointFacts, recipe: Recipe) -> None:
    """Refuse what cannot be done to this checkpoint.

    Raises:
        RecipeError: a target names no module, ``activations`` find no int8 weight, embeddings get
            a method for linear layers, modules that engines fuse would get different schemes, every
            layer's cache is kept as it is, or the family is known by its outline only and the
            recipe needs more than that.
    """
    _require_targets(facts, recipe)
    _require_activations(facts, recipe)
    _require_table_method(recipe)
    if facts.known is None:
        _require_outline_suffices(facts, recipe)
    else:
        _require_equal_units(facts, recipe)
        layer_schemes(recipe.kv_cache, facts.architecture.num_layers)


def method_of(scheme: AnyWeight) -> str | None:
    """Return the method by which a scheme chooses its codes; None where it has no choice."""
    return getattr(scheme, "method", None)


def _require_targets(facts: CheckpointFacts, recipe: Recipe) -> None:
    targets = [*recipe.keep, *(target for rule in recipe.rules for target in rule.targets)]
    for target in targets:
        if not any(matches(target, module) for module in facts.linears):
            raise RecipeError(
                f"recipe {recipe.name!r}: the target {target!r} names no linear module of this "
                f"model: they are named like {facts.linears[0]!r}"
            )


def _require_activations(facts: CheckpointFacts, recipe: Recipe) -> None:
    if recipe.activations == "none":
        return
    if not any(isinstance(recipe.scheme_for(module), Int8) for module in facts.linears):
        raise RecipeError(
            f"recipe {recipe.name!r} has activations 'int8', but keep and rules leave no module "
            "with int8 weights: remove 'activations' or give some module int8"
        )


def _require_table_method(recipe: Recipe) -> None:
    method = method_of(recipe.embeddings)
    if method in {"imatrix", "best"}:
        raise RecipeError(
            f"recipe {recipe.name!r} gives the embeddings the method {method!r}, which is for "
            "linear layers: use 'rtn', 'mse', 'gptq' or 'auto'"
        )


def _require_equal_units(facts: CheckpointFacts, recipe: Recipe) -> None:
    """Refuse schemes that differ inside one unit: engines fuse q, k, v, and gate with up."""
    for layer in range(facts.architecture.num_layers):
        modules = [module for module, _ in facts.architecture.linears(layer)]
        for names in FUSED:
            first, *others = (each for each in modules if each.endswith(names))
            for other in others:
                if recipe.scheme_for(first).label != recipe.scheme_for(other).label:
                    raise RecipeError(
                        f"recipe {recipe.name!r} gives {first!r} the scheme "
                        f"{recipe.scheme_for(first).label} and {other!r} "
                        f"{recipe.scheme_for(other).label}: engines fuse them, so target both alike"
                    )


def _require_outline_suffices(facts: CheckpointFacts, recipe: Recipe) -> None:
    where = f"recipe {recipe.name!r} on {facts.name!r}, of which only the linear layers are known"
    if recipe.prune.is_active:
        raise RecipeError(f"{where}: 'prune' needs a known family; remove it")
    if recipe.budget is not None:
        raise RecipeError(f"{where}: 'budget' needs a known family; remove it")
    for scheme in (*map(recipe.scheme_for, facts.linears), recipe.embeddings):
        method = method_of(scheme)
        if method in CALIBRATED:
            raise RecipeError(
                f"{where}: the method {method!r} needs a known family; use 'rtn', 'mse' "
                "or nf4, as the recipe int4-fast does"
            )
    if all(isinstance(recipe.scheme_for(module), Unquantized) for module in facts.linears):
        raise RecipeError(f"{where}: it leaves every layer as it is; give 'weights' a scheme")
