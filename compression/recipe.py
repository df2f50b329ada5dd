"""What the user asks for: a frozen, validated, versioned recipe with a digest."""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compression.errors import RecipeError
from compression.schemes import Int4, Int8, Unquantized, WeightScheme

FULL = "full"
"""The name that means: serve the checkpoint as it is, with no recipe."""


class Recipe(BaseModel):
    """How to compress a checkpoint.

    ``weights`` covers every linear layer inside the decoder, ``embeddings`` the token embedding
    and the output head (tied or not).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    weights: WeightScheme
    embeddings: Unquantized | Int8 = Field(default=Unquantized(), discriminator="scheme")

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything in the recipe that changes the result.

        The name is left out: two recipes that do the same share their artifacts.
        """
        body = self.model_dump(mode="json", exclude={"name"})
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="int8", weights=Int8(), embeddings=Int8()),
            Recipe(name="int4", weights=Int4(), embeddings=Int8()),
        )
    }
)


def load_recipe(name_or_path: str) -> Recipe:
    """Return the preset of that name, or the recipe in that YAML file.

    Raises:
        RecipeError: unknown name, unreadable file, unknown key or bad value.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        known = ", ".join([*PRESETS, FULL])
        raise RecipeError(
            f"unknown recipe {name_or_path!r}: use one of {known}, or the path of a .yaml file"
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {name_or_path!r}: {error.strerror}") from None
    # A date such as 2024-99-99 is a bare ValueError, and nesting without end a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"recipe {name_or_path!r} is not YAML: {reason}") from None
    return parse_recipe(fields, where=name_or_path, default_name=path.stem)


def parse_recipe(fields: Any, *, where: str, default_name: str) -> Recipe:
    """Validate plain data as a recipe.

    Raises:
        RecipeError: names the key, the value and what is allowed; also where the name is that of
            a preset which does something else.
    """
    if not isinstance(fields, dict):
        raise RecipeError(f"recipe {where!r} must be a mapping with the key 'weights'")
    try:
        recipe = Recipe.model_validate({"name": default_name.lower(), **fields})
    except ValidationError as error:
        raise RecipeError(f"recipe {where!r}: {_first_problem(error)}") from None
    if recipe.name in {*PRESETS, FULL} and recipe != PRESETS.get(recipe.name):
        raise RecipeError(
            f"recipe {where!r} is named {recipe.name!r}, which is a preset: "
            "give it another name with the key 'name'"
        )
    return recipe


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}: remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"missing key {key!r}"
    if problem["type"] == "string_pattern_mismatch":
        return (
            f"the name {problem['input']!r} (of the file, unless it has the key 'name') must be 1 "
            "to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit: set the key 'name'"
        )
    return f"{key!r} is {reprlib.repr(problem['input'])}: {problem['msg']}"
