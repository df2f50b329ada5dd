"""What ``method: auto`` stands for on one checkpoint: decided from its facts, free of torch."""

from collections.abc import Callable

from compression.facts import CheckpointFacts
from compression.recipe import Recipe
from compression.schemes import AUTO, AnyWeight, Int8

MOST_WEIGHTS = 500_000_000
"""Numbers in the linear layers up to which a model is calibrated: time and memory grow with them.

The demo model has 106 million."""


def choose_methods(facts: CheckpointFacts, recipe: Recipe) -> tuple[Recipe, str]:
    """Return the recipe with a method in the place of each ``auto``, and why it is no better one.

    It is GPTQ, or plain rounding where there is a reason for it; the reason is empty otherwise.
    """
    why = _obstacle(facts) if recipe.is_automatic else ""
    method = "rtn" if why else "gptq"

    def chosen(scheme: AnyWeight) -> AnyWeight:
        is_open = isinstance(scheme, Int8) and scheme.method == AUTO
        return scheme.model_copy(update={"method": method}) if is_open else scheme

    return _with_schemes(recipe, chosen), why


def _with_schemes(recipe: Recipe, change: Callable[[AnyWeight], AnyWeight]) -> Recipe:
    rules = tuple(
        rule.model_copy(update={"weights": change(rule.weights)}) for rule in recipe.rules
    )
    changed = {"weights": recipe.weights, "embeddings": recipe.embeddings}
    update = {key: change(scheme) for key, scheme in changed.items()}
    return recipe.model_copy(update={**update, "rules": rules})


def _obstacle(facts: CheckpointFacts) -> str:
    """Return why nothing is calibrated; empty where everything is there for it."""
    if facts.known is None:
        return f"rounded plainly: {facts.name} is known by its linear layers only"
    weights = sum(_count(facts.tensors[f"{module}.weight"].shape) for module in facts.linears)
    if weights > MOST_WEIGHTS:
        return f"rounded plainly: {weights / 1e6:.0f} million weights would take long to calibrate"
    if not (facts.directory / "tokenizer.json").is_file():
        return "rounded plainly: without tokenizer.json no text can be read"
    return ""


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
