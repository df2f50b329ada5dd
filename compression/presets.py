"""Recipes by name: the presets, and recipes in YAML files."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from compression.errors import RecipeError
from compression.recipe import FULL, Calibration, KvCache, Prune, Recipe
from compression.schemes import Int4, Int5, Int8, KvInt4, KvInt8, Nf4
from compression.strict_yaml import load_yaml

_KV8 = KvCache(key=KvInt8(), value=KvInt8())
_K8V4 = KvCache(key=KvInt8(), value=KvInt4(group_size=64))
_INT8 = Int8(method="auto")
_INT4 = Int4(method="imatrix")
_SHORT = Calibration(tokens=4096)
"""Enough for means of squares."""
SUFFIXES = frozenset({".yaml", ".yml"})
"""What the file of a recipe ends in."""
_MIDDLE = Calibration(tokens=8192)
"""For second moments where rounding errs little."""
_LONG = Calibration(tokens=24576)
"""For whole second moments, which fit themselves to too short a text."""

PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="int8", weights=_INT8, embeddings=_INT8, calibration=_MIDDLE),
            Recipe(name="int8-fast", weights=Int8(), embeddings=Int8()),
            Recipe(
                name="int8-gptq",
                weights=Int8(method="gptq"),
                embeddings=Int8(method="gptq"),
                calibration=_LONG,
            ),
            Recipe(name="int4", weights=_INT4, embeddings=Int8(), calibration=_SHORT),
            Recipe(name="int4-fast", weights=Int4(method="mse"), embeddings=Int8()),
            Recipe(
                name="int4-gptq", weights=Int4(method="gptq"), embeddings=Int8(), calibration=_LONG
            ),
            Recipe(
                name="int5",
                weights=Int5(method="gptq"),
                embeddings=Int8(method="gptq"),
                calibration=_MIDDLE,
            ),
            Recipe(name="nf4", weights=Nf4(), embeddings=Int8()),
            Recipe(
                name="w8a8",
                weights=_INT8,
                embeddings=Int8(),
                activations="int8",
                calibration=_MIDDLE,
            ),
            Recipe(
                name="w8-kv8",
                weights=_INT8,
                embeddings=_INT8,
                kv_cache=_KV8,
                calibration=_MIDDLE,
            ),
            Recipe(
                name="w4-kv8",
                weights=_INT4,
                embeddings=Int8(),
                kv_cache=_KV8,
                calibration=_SHORT,
            ),
            Recipe(
                name="w4-k8v4",
                weights=_INT4,
                embeddings=Int8(),
                kv_cache=_K8V4,
                calibration=_SHORT,
            ),
            Recipe(
                name="w4-kv8-heads",
                weights=_INT4,
                embeddings=Int8(),
                kv_cache=_KV8,
                prune=Prune(query_heads=1),
                calibration=_SHORT,
            ),
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
    if path.suffix not in SUFFIXES:
        known = ", ".join([*PRESETS, FULL])
        raise RecipeError(
            f"unknown recipe {name_or_path!r}: use one of {known}, or the path of a .yaml file"
        )
    try:
        fields = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {name_or_path!r}: {error.strerror}") from None
    # A date such as 2024-99-99 is a bare ValueError, and nesting without end a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"recipe {name_or_path!r} cannot be read as YAML: {reason}") from None
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


def recipe_yaml(recipe: Recipe) -> str:
    """Return a recipe as the YAML that reads back as it.

    A preset is without its name, which a file that differs from it could not have.
    """
    unnamed = {"name"} if recipe == PRESETS.get(recipe.name) else set()
    fields = recipe.model_dump(mode="json", exclude_none=True, exclude=unnamed)
    return str(yaml.safe_dump(fields, sort_keys=False, width=100))


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
    if not key:
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"{key!r} is {reprlib.repr(problem['input'])}: {problem['msg']}"
