"""What a recipe says beyond its weights: rules, keep, caches, pruning, and what cannot be said."""

from typing import Any

import pytest

from compression.errors import RecipeError
from compression.presets import PRESETS, parse_recipe
from compression.recipe import Recipe, matches
from compression.schemes import Int4, Int8, Unquantized

INT4 = {"scheme": "int4"}
MODULE = "model.layers.3.mlp.up_proj"


def recipe_of(**fields: Any) -> Recipe:
    """Return a recipe as a user would write it."""
    return parse_recipe(fields, where="test", default_name="mine")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("Linear", True),
        (MODULE, True),
        ("model.layers.3.mlp", False),
        (r"re:model\.layers\.3\.", True),
        (r"re:mlp", False),
        (r"re:.*mlp", True),
        (r"re:.*layers\.\d\.mlp\.up_proj$", True),
    ],
)
def test_targets_are_read_as_compressed_tensors_reads_them(target: str, expected: bool) -> None:
    """Class name, exact path, or an expression that must match from the start."""
    assert matches(target, MODULE) is expected


def test_first_rule_wins_and_keep_beats_it() -> None:
    """The order of rules counts; `keep` does not care."""
    rules = [
        {"targets": [MODULE], "weights": {"scheme": "int8"}},
        {"targets": ["Linear"], "weights": {"scheme": "int4", "group_size": 128}},
    ]
    recipe = recipe_of(weights=INT4, rules=rules)
    assert recipe.scheme_for(MODULE) == Int8()
    assert recipe.scheme_for("model.layers.0.mlp.up_proj") == Int4(group_size=128)
    kept = recipe_of(weights=INT4, rules=rules, keep=[MODULE])
    assert kept.scheme_for(MODULE) == Unquantized()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"keep": ["re:("]}, r"'keep' is .*no regular expression"),
        ({"keep": [""]}, r"'keep' is .*a target is empty"),
        ({"rules": [{"targets": [], "weights": INT4}]}, r"'rules\.0\.targets' is \[\]"),
        ({"rules": [{"targets": ["Linear"]}]}, r"missing key 'rules\.0\.weights'"),
        (
            {"rules": [{"targets": ["Linear"], "weights": {"scheme": "nf4"}}]},
            r"nf4 cannot be mixed with int4, int5 or int8",
        ),
        ({"activations": "int8"}, r"activations 'int8' need weights of scheme int8"),
        ({"kv_cache": {"key": {"scheme": "int3"}}}, r"'kv_cache\.key' is .*int3"),
        ({"kv_cache": {"keep_first": -1}}, r"'kv_cache\.keep_first' is -1"),
        ({"prune": {"neurons": 1.0}}, r"'prune\.neurons' is 1\.0"),
        ({"prune": {"layers": 2}}, r"unknown key 'prune\.layers'"),
        ({"calibration": {"tokens": 10}}, r"'calibration\.tokens' is 10"),
        ({"budget": {}}, r"at least one of kld, worst_slice_kld, top1"),
        ({"budget": {"top1": 1.5}}, r"'budget\.top1' is 1\.5"),
        ({"version": 2}, r"'version' is 2"),
    ],
)
def test_impossible_recipes_name_the_key(fields: dict[str, Any], expected: str) -> None:
    """Each mistake gets one line with the key, the value or the remedy."""
    with pytest.raises(RecipeError, match=expected) as caught:
        recipe_of(**{"weights": INT4, **fields})
    assert "\n" not in str(caught.value)


def test_every_field_that_counts_changes_the_digest() -> None:
    """No two treatments share an artifact."""
    variants: list[dict[str, Any]] = [
        {},
        {"keep": [MODULE]},
        {"rules": [{"targets": [MODULE], "weights": {"scheme": "int8"}}]},
        {"embeddings": {"scheme": "int8"}},
        {"kv_cache": {"key": {"scheme": "int8"}}},
        {"kv_cache": {"value": {"scheme": "int8"}}},
        {"kv_cache": {"key": {"scheme": "int8"}, "keep_last": 1}},
        {"prune": {"query_heads": 1}},
        {"prune": {"query_heads": 1}, "calibration": {"seed": 1}},
    ]
    digests = {recipe_of(weights=INT4, **fields).digest for fields in variants}
    assert len(digests) == len(variants)


def test_presets_have_the_names_of_their_files() -> None:
    """Each preset is found under its own name and differs from the others."""
    assert all(name == recipe.name for name, recipe in PRESETS.items())
    assert len({recipe.digest for recipe in PRESETS.values()}) == len(PRESETS)
    assert {"int8", "int4", "nf4", "w8-kv8", "w4-kv8", "w4-k8v4", "w4-kv8-heads"} <= set(PRESETS)
