"""What pruning leaves, decided before a weight is read: counts, families, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compression.architecture import Architecture, parse_architecture
from compression.checked_plan import plan_checked
from compression.errors import RecipeError
from compression.facts import read_facts
from compression.pruning.selection import keep_heads
from compression.pruning.shape import Shape, pruned_shape
from compression.recipe import Prune, Recipe
from compression.schemes import Int4
from tests.checkpoints import CONFIGS, make_tiny_checkpoint

HEADS = Prune(query_heads=1)


def _architecture(family: str) -> Architecture:
    """Return 9 query heads on 3 key-value heads, hidden 72, 128 neurons."""
    config = CONFIGS[family](
        hidden_size=72,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=8,
        vocab_size=320,
    ).to_dict()
    name = {"qwen2": "Qwen2", "qwen3": "Qwen3"}.get(family, family.capitalize())
    return parse_architecture({**config, "architectures": [f"{name}ForCausalLM"]}, where="test")


def test_selection_keeps_the_best() -> None:
    """Whole groups go by their own scores, heads by theirs within the groups that stay."""
    form = pruned_shape(Prune(), _architecture("llama")).form
    shape = Shape(heads_per_group=1, kv_heads=2, neurons=64, form=form)
    scores = torch.tensor([1.0, 2.0, 9.0, 9.0, 4.0, 3.0])
    kept = keep_heads(scores, torch.tensor([1.0, 0.5, 2.0]), shape)
    assert kept.kv_heads == (0, 2)
    assert kept.query_heads == (1, 4)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Prune(query_heads=3), "prune.query_heads is 3"),
        (Prune(kv_groups=3), "prune.kv_groups is 3"),
        (Prune(neurons=0.95), "prune.neurons is 0.95, which leaves no neuron"),
        (Prune(neurons=0.01), "prune.neurons is 0.01, which leaves all 128 neurons"),
    ],
)
def test_impossible_counts_are_refused(recipe: Prune, says: str) -> None:
    """One line names the field, the value and the remedy."""
    with pytest.raises(RecipeError) as refusal:
        pruned_shape(recipe, _architecture("llama"))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_families_that_cannot_hold_the_result_are_refused() -> None:
    """A Qwen2 whose head count does not divide, and a family that pruning does not know."""
    architecture = replace(_architecture("qwen2"), hidden_size=64)
    with pytest.raises(RecipeError, match="6 query heads, which do not divide the hidden size 64"):
        pruned_shape(HEADS, architecture)
    unknown = replace(architecture, name="PhiForCausalLM")
    with pytest.raises(RecipeError, match="pruning knows Llama, Mistral, Qwen2, Qwen3"):
        pruned_shape(HEADS, unknown)


def test_large_models_are_not_scored_head_by_head() -> None:
    """Leave-one-out runs the model once a head: it is refused before that takes days."""
    large = replace(_architecture("llama"), intermediate_size=2**20, num_layers=90)
    with pytest.raises(RecipeError, match="leave-one-out"):
        pruned_shape(Prune(query_heads=1, score="leave-one-out"), large)


def test_what_stays_must_fit_the_groups(tmp_path: Path) -> None:
    """3 of 4 heads leave 48 columns, no multiple of 32: refused before a weight is read."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "source", num_attention_heads=4))
    recipe = Recipe(name="mine", weights=Int4(group_size=32), prune=Prune(kv_groups=1))
    assert plan_checked(facts, recipe).recipe is recipe
    three = make_tiny_checkpoint(tmp_path / "three", num_key_value_heads=4)
    with pytest.raises(RecipeError, match="48 columns, not a multiple of group_size 32"):
        plan_checked(read_facts(three), recipe)
