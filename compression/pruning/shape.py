"""What stays of every layer: counts, decided from recipe and config before a weight is read."""

from dataclasses import dataclass

from compression.architecture import Architecture
from compression.errors import RecipeError
from compression.pruning.form import Form, choose_form
from compression.recipe import Prune

MULTIPLE = 128
"""What the neurons that stay are a multiple of: groups, kernel tiles and vLLM ask for it."""
SMALL_MULTIPLE = 32
"""The same for layers of fewer than 1024 neurons."""
_MAX_LEFT_OUT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What stays of every layer, the same in each, and how it is written."""

    heads_per_group: int
    kv_heads: int
    neurons: int
    form: Form

    @property
    def heads(self) -> int:
        """Return the query heads of a layer."""
        return self.heads_per_group * self.kv_heads


def pruned_shape(prune: Prune, architecture: Architecture) -> Shape:
    """Return what ``prune`` leaves of a checkpoint.

    Raises:
        RecipeError: nothing would be left, nothing would change, or no family holds the result.
    """
    group = architecture.num_heads // architecture.num_kv_heads
    if prune.query_heads >= group:
        raise RecipeError(
            f"prune.query_heads is {prune.query_heads}, but each key-value head of this model has "
            f"{group} query heads: give at most {group - 1}, or remove whole groups with "
            "prune.kv_groups"
        )
    if prune.kv_groups >= architecture.num_kv_heads:
        raise RecipeError(
            f"prune.kv_groups is {prune.kv_groups}, but this model has "
            f"{architecture.num_kv_heads} key-value heads: give at most "
            f"{architecture.num_kv_heads - 1}"
        )
    if prune.score == "leave-one-out" and _num_weights(architecture) > _MAX_LEFT_OUT:
        raise RecipeError(
            "prune.score 'leave-one-out' runs the whole model once for every head, which is for "
            "models of up to 1e9 weights: use 'fluctuation'"
        )
    heads_per_group = group - prune.query_heads
    kv_heads = architecture.num_kv_heads - prune.kv_groups
    form = choose_form(architecture, heads_per_group * kv_heads)
    return Shape(heads_per_group, kv_heads, _neurons_left(prune, architecture), form)


def _neurons_left(prune: Prune, architecture: Architecture) -> int:
    """Return the multiple that is nearest to what is asked for."""
    neurons = architecture.intermediate_size
    if prune.neurons == 0:
        return neurons
    multiple = MULTIPLE if neurons >= 1024 else SMALL_MULTIPLE
    left = round(neurons * (1 - prune.neurons) / multiple) * multiple
    if 0 < left < neurons:
        return left
    problem = "no neuron" if left == 0 else f"all {neurons} neurons"
    raise RecipeError(
        f"prune.neurons is {prune.neurons}, which leaves {problem} once rounded to a multiple of "
        f"{multiple}: one multiple is {multiple / neurons:.3f} of them, give some more or less"
    )


def _num_weights(architecture: Architecture) -> int:
    count = 0
    for shape in architecture.tensors().values():
        count += shape[0] * (shape[1] if len(shape) > 1 else 1)
    return count
