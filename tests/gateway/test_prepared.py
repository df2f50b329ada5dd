"""An engine that others run is held against what the settings call it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from compression.events import ignore
from compression.presets import load_recipe
from compression.recipe import KvCache, Recipe
from compression.schemes import Int8, KvFp8
from gateway.errors import SchemeMismatch
from gateway.launch import prepare
from gateway.model_settings import VariantSettings
from gateway.prepared import Prepared
from gateway.protocol import EngineInfo
from gateway.specs import VariantSpec

DIGEST = load_recipe("int4").digest


def check(called: str, told: dict[str, Any]) -> None:
    """Hold what an engine tells against settings that name a recipe."""
    settings = VariantSettings(model="x", recipe=called, urls=("http://127.0.0.1:1",))
    spec = VariantSpec("m", "small", settings)
    prepared = asyncio.run(prepare(spec, ignore, is_measured=False))
    info = EngineInfo.model_validate({"served_model_name": "x"} | told)
    prepared.require_applied(prepared.complete(info), rounds_at_load=True)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("int4", {}),
        ("full", {}),
        ("full", {"schemes": {"none": 7}}),
        ("full", {"recipe": "full", "schemes": {"none": 7}}),
        ("int4", {"schemes": {"int4-g32-sym": 7, "none": 1}}),
        ("int4", {"schemes": {"none": 0}}),
        ("int4", {"recipe": "int4"}),
        ("int4", {"recipe": "int4", "recipe_digest": DIGEST}),
        ("int4", {"recipe": "mine", "recipe_digest": DIGEST}),
    ],
)
def test_what_agrees_or_is_not_told_passes(recipe: str, told: dict[str, Any]) -> None:
    """A foreign server says nothing; the same recipe under another name is the same."""
    check(recipe, told)


@pytest.mark.parametrize(
    ("recipe", "told", "words"),
    [
        ("int4", {"recipe": "full"}, "runs recipe 'full', and the settings call it 'int4'"),
        (
            "int4",
            {"schemes": {"none": 7, "int4-g32-sym": 0}},
            "runs recipe 'full', and the settings call it 'int4': say 'recipe': full, or",
        ),
        ("full", {"recipe": "int4", "recipe_digest": DIGEST}, "runs recipe 'int4', and"),
        (
            "int4",
            {"recipe": "int4", "recipe_digest": "f" * 64},
            f"name 'int4' than this gateway has: its digest is {'f' * 12}, here {DIGEST[:12]}:",
        ),
    ],
)
def test_what_differs_is_refused(recipe: str, told: dict[str, Any], words: str) -> None:
    """One line names both, whether the engine told a name, a digest or only its layers."""
    with pytest.raises(SchemeMismatch, match=words):
        check(recipe, told)


def test_a_file_of_the_same_name_with_other_contents_is_refused(tmp_path: Path) -> None:
    """What the file here says counts, not how it is called."""
    here, there = tmp_path / "mine.yaml", tmp_path / "there" / "mine.yaml"
    there.parent.mkdir()
    here.write_text("weights: {scheme: int4}\n")
    there.write_text("weights: {scheme: int8}\n")
    recipes = {file: load_recipe(str(file)) for file in (here, there)}
    told = {file: {"recipe": "mine", "recipe_digest": recipes[file].digest} for file in recipes}
    check(str(here), told[here])
    with pytest.raises(SchemeMismatch, match="another recipe of the name 'mine'"):
        check(str(here), told[there])


def held(layers: tuple[str, ...] | None, **kept: int) -> EngineInfo:
    """Hold how an engine keeps its layers' keys and values against a recipe with an fp8 cache."""
    cache = KvCache(key=KvFp8(), value=KvFp8(), **kept)
    recipe = Recipe(name="mine", weights=Int8(), kv_cache=cache).model_dump(mode="json")
    manifest = {
        "recipe": recipe,
        "tensors": [
            {"shape": [2, 2], "applied": "int8-rows", "bytes_before": 8, "bytes_stored": 4}
        ],
    }
    told = {"served_model_name": "m", "schemes": {"int8-rows": 7}, "kv_layers": layers}
    info = EngineInfo.model_validate(told)
    Prepared(Path("/store/a"), manifest).require_applied(info, rounds_at_load=False)
    return info


def test_a_cache_that_is_as_asked_passes() -> None:
    """Every layer is in fp8 but those that were to be kept; who tells nothing is believed."""
    assert held(("fp8",) * 3).kv_dtype == "fp8"
    assert (
        held(("bfloat16", "fp8", "fp8"), keep_first=1).kv_dtype == "fp8 in 2 layers, bfloat16 in 1"
    )
    assert held(None).kv_dtype is None


@pytest.mark.parametrize(
    ("layers", "kept", "words"),
    [
        (("bfloat16",) * 5, {}, "of layer 0 in bfloat16, layer 1 in bfloat16, .* and 2 more, and"),
        (("fp8",) * 3, {"keep_last": 1}, "of layer 2 in fp8, and 'kv_cache' of recipe 'mine' asks"),
        (("fp8", "fp8", "bfloat16"), {"keep_first": 1}, "of layer 0 in fp8, layer 2 in bfloat16"),
        ((), {}, "of no layer that it could name"),
    ],
)
def test_a_cache_that_is_not_as_asked_is_refused(
    layers: tuple[str, ...], kept: dict[str, int], words: str
) -> None:
    """The layers that differ are named."""
    with pytest.raises(SchemeMismatch, match=words):
        held(layers, **kept)
