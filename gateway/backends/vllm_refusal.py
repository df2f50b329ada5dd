"""Why vLLM cannot carry out a part of a recipe, and what can be done instead."""

from dataclasses import dataclass

from compression.recipe import Recipe
from gateway.errors import LoadRefused


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a part of a recipe cannot be served, and what can be instead."""

    reason: str
    remedy: str

    def of(self, recipe: Recipe) -> LoadRefused:
        """Return the error that tells it of a recipe."""
        return LoadRefused(
            f"recipe {recipe.name!r} cannot be served by vLLM: {self.reason}: {self.remedy}"
        )
